"""How well errors of a real detector are told, beside what else could be used."""
