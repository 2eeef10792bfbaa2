-- A catalogue of the second schema, as it was made then. It stays as it is.
CREATE TABLE schema_number (number INTEGER NOT NULL, PRIMARY KEY (number));
CREATE TABLE model (id INTEGER NOT NULL, name VARCHAR NOT NULL, architecture VARCHAR NOT NULL, architecture_hash VARCHAR NOT NULL, PRIMARY KEY (id), UNIQUE (name));
CREATE TABLE layout (id INTEGER NOT NULL, columns VARCHAR NOT NULL, PRIMARY KEY (id), UNIQUE (columns));
CREATE TABLE segment (id INTEGER NOT NULL, name VARCHAR NOT NULL, PRIMARY KEY (id), UNIQUE (name));
CREATE TABLE version (id INTEGER NOT NULL, model_id INTEGER NOT NULL, name VARCHAR NOT NULL, task VARCHAR NOT NULL, layers VARCHAR NOT NULL, fields VARCHAR NOT NULL, label_fields VARCHAR NOT NULL, PRIMARY KEY (id), UNIQUE (model_id, name), FOREIGN KEY(model_id) REFERENCES model (id));
CREATE TABLE run (id INTEGER NOT NULL, version_id INTEGER NOT NULL, uuid VARCHAR NOT NULL, purpose VARCHAR NOT NULL, host VARCHAR NOT NULL, pid INTEGER NOT NULL, rank INTEGER NOT NULL, world_size INTEGER NOT NULL, started_at BIGINT NOT NULL, settings VARCHAR DEFAULT '{}' NOT NULL, PRIMARY KEY (id), UNIQUE (version_id, uuid, rank), FOREIGN KEY(version_id) REFERENCES version (id));
CREATE TABLE result (id INTEGER NOT NULL, name VARCHAR NOT NULL, version_id INTEGER NOT NULL, method VARCHAR NOT NULL, n_epoch VARCHAR NOT NULL, options VARCHAR NOT NULL, created_at VARCHAR NOT NULL, completed_at VARCHAR NOT NULL, PRIMARY KEY (id), UNIQUE (name), FOREIGN KEY(version_id) REFERENCES version (id));
CREATE INDEX ix_result_version_id ON result (version_id);
CREATE TABLE chunk (id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, version_id INTEGER NOT NULL, run_id INTEGER NOT NULL, layout_id INTEGER NOT NULL, segment_id INTEGER NOT NULL, n_epoch BIGINT, dataset_type VARCHAR NOT NULL, inputs INTEGER NOT NULL, units INTEGER NOT NULL, actuals INTEGER, "offset" BIGINT NOT NULL, nbytes BIGINT NOT NULL, buffers BLOB NOT NULL, crc BIGINT NOT NULL, written_at BIGINT NOT NULL, FOREIGN KEY(version_id) REFERENCES version (id), FOREIGN KEY(run_id) REFERENCES run (id), FOREIGN KEY(layout_id) REFERENCES layout (id), FOREIGN KEY(segment_id) REFERENCES segment (id));
CREATE INDEX chunk_scope ON chunk (version_id, n_epoch, dataset_type);
CREATE INDEX chunk_segment ON chunk (segment_id);
CREATE TABLE estimate (result VARCHAR NOT NULL, chunk_id INTEGER NOT NULL, name VARCHAR NOT NULL, dtype VARCHAR NOT NULL, shape VARCHAR NOT NULL, known BLOB, data BLOB NOT NULL, PRIMARY KEY (result, chunk_id, name), FOREIGN KEY(chunk_id) REFERENCES chunk (id) ON DELETE CASCADE);
CREATE INDEX ix_estimate_chunk_id ON estimate (chunk_id);
INSERT INTO schema_number VALUES (2);
