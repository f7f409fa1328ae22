-- Whether an attempt's container was made from an image that has the dependencies; and when an image was last used.
ALTER TABLE jobs ADD COLUMN image_cached INTEGER CHECK (image_cached IN (0, 1));
ALTER TABLE attempts ADD COLUMN image_cached INTEGER CHECK (image_cached IN (0, 1));

CREATE INDEX attempts_by_image ON attempts (image_id, started_at, ended_at) WHERE image_id IS NOT NULL;
