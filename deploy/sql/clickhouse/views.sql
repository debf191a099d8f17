-- The views that the questions ask, for ClickHouse. In the place of {STORE} goes the directory that holds `flows` (of a bucket: write
-- s3('https://…', …) in the place of file('…', …)), of {SINCE} and {UNTIL} the window, in UTC: 2026-01-31 12:00:00. See deploy/sql/README.md.

-- Every flow that began in the window. `policy` is the one that decided a denied flow.
CREATE OR REPLACE VIEW flows AS
SELECT * EXCEPT (date, hour), if(verdict = 'denied', toNullable(denied_by[1]), NULL) AS policy
FROM file('{STORE}/flows/date=*/hour=*/*.parquet', Parquet)
-- Files of other days are not read.
WHERE date >= toDate(substring('{SINCE}', 1, 10)) AND date <= toDate(substring('{UNTIL}', 1, 10))
  AND time >= toDateTime64('{SINCE}', 6, 'UTC') AND time < toDateTime64('{UNTIL}', 6, 'UTC')
SETTINGS use_hive_partitioning = 1;

-- What changed in the objects that flows were judged by, until the end of the window. What still held when older files were removed is
-- there too, with its own time.
CREATE OR REPLACE VIEW objects AS
SELECT * EXCEPT (date, hour)
FROM file('{STORE}/objects/date=*/hour=*/*.parquet', Parquet)
WHERE date <= toDate(substring('{UNTIL}', 1, 10)) AND time < toDateTime64('{UNTIL}', 6, 'UTC')
SETTINGS use_hive_partitioning = 1;

-- One row for each rule that decided a flow. `is_sole`: no other rule allowed it.
CREATE OR REPLACE VIEW rule_matches AS
SELECT rule, rule_path, length(rules) = 1 AS is_sole, time, last_time, node, run, sequence,
       maybe_repeated, count, direction, verdict, subject_namespace, subject_workload, peer_kind, peer_namespace,
       peer_workload, peer_ip, protocol, port
FROM flows ARRAY JOIN rules AS rule, rule_paths AS rule_path;

-- One row for each name that DNS gave for the peer of a flow.
CREATE OR REPLACE VIEW flow_names AS
SELECT told.name AS name, told.state AS state, told.asked AS asked, told.counts AS counts, told.answered AS answered,
       told.server AS server, peer_ip, time, last_time, count, subject_namespace, subject_workload, protocol, port
FROM flows ARRAY JOIN peer_names AS told;
