-- The views that the questions ask, for DuckDB. In the place of {STORE} goes the directory (or s3://BUCKET/PREFIX) that holds `flows`,
-- of {SINCE} and {UNTIL} the window, in UTC: 2026-01-31 12:00:00. See deploy/sql/README.md.
SET TimeZone = 'UTC';

-- Every flow that began in the window. `policy` is the one that decided a denied flow.
CREATE OR REPLACE VIEW flows AS
SELECT * EXCLUDE (date, hour), CASE WHEN verdict = 'denied' THEN denied_by[1] END AS policy
FROM read_parquet('{STORE}/flows/date=*/hour=*/*.parquet', hive_partitioning = true,
                  hive_types = {'date': DATE, 'hour': VARCHAR})
-- Files of other days are not read.
WHERE date >= CAST(substr('{SINCE}', 1, 10) AS DATE) AND date <= CAST(substr('{UNTIL}', 1, 10) AS DATE)
  AND time >= TIMESTAMPTZ '{SINCE}+00' AND time < TIMESTAMPTZ '{UNTIL}+00';

-- What changed in the objects that flows were judged by, until the end of the window. What still held when older files were removed is
-- there too, with its own time.
CREATE OR REPLACE VIEW objects AS
SELECT * EXCLUDE (date, hour)
FROM read_parquet('{STORE}/objects/date=*/hour=*/*.parquet', hive_partitioning = true,
                  hive_types = {'date': DATE, 'hour': VARCHAR})
WHERE date <= CAST(substr('{UNTIL}', 1, 10) AS DATE) AND time < TIMESTAMPTZ '{UNTIL}+00';

-- One row for each rule that decided a flow. `is_sole`: no other rule allowed it.
CREATE OR REPLACE VIEW rule_matches AS
SELECT unnest(rules) AS rule, unnest(rule_paths) AS rule_path, len(rules) = 1 AS is_sole, time, last_time, node, run, sequence,
       maybe_repeated, count, direction, verdict, subject_namespace, subject_workload, peer_kind, peer_namespace,
       peer_workload, peer_ip, protocol, port
FROM flows;

-- One row for each name that DNS gave for the peer of a flow.
CREATE OR REPLACE VIEW flow_names AS
SELECT unnest(peer_names, recursive := true), peer_ip, time, last_time, count, subject_namespace, subject_workload, protocol, port
FROM flows;
