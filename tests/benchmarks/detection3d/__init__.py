"""How well errors of a real 3D detector are told, beside what else could be used."""
