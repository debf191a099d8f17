-- The views that the questions ask, for Spark. In the place of {STORE} goes the directory (or s3a://BUCKET/PREFIX) that holds `flows`,
-- of {SINCE} and {UNTIL} the window, in UTC: 2026-01-31 12:00:00. See deploy/sql/README.md.
SET spark.sql.session.timeZone = UTC;

-- Every flow that began in the window. `policy` is the one that decided a denied flow.
CREATE OR REPLACE TEMPORARY VIEW flows AS
SELECT * EXCEPT (date, hour), CASE WHEN verdict = 'denied' THEN element_at(denied_by, 1) END AS policy
FROM parquet.`{STORE}/flows`
-- Files of other days are not read.
WHERE date >= CAST(substr('{SINCE}', 1, 10) AS DATE) AND date <= CAST(substr('{UNTIL}', 1, 10) AS DATE)
  AND time >= TIMESTAMP '{SINCE} UTC' AND time < TIMESTAMP '{UNTIL} UTC';

-- What changed in the objects that flows were judged by, until the end of the window. What still held when older files were removed is
-- there too, with its own time.
CREATE OR REPLACE TEMPORARY VIEW objects AS
SELECT * EXCEPT (date, hour)
FROM parquet.`{STORE}/objects`
WHERE date <= CAST(substr('{UNTIL}', 1, 10) AS DATE) AND time < TIMESTAMP '{UNTIL} UTC';

-- One row for each rule that decided a flow. `is_sole`: no other rule allowed it.
CREATE OR REPLACE TEMPORARY VIEW rule_matches AS
SELECT matched.rules AS rule, matched.rule_paths AS rule_path, size(rules) = 1 AS is_sole, time, last_time, node, run, sequence,
       maybe_repeated, count, direction, verdict, subject_namespace, subject_workload, peer_kind, peer_namespace,
       peer_workload, peer_ip, protocol, port
FROM flows LATERAL VIEW explode(arrays_zip(rules, rule_paths)) each AS matched;

-- One row for each name that DNS gave for the peer of a flow.
CREATE OR REPLACE TEMPORARY VIEW flow_names AS
SELECT told.name, told.state, told.asked, told.counts, told.answered, told.server, peer_ip, time, last_time, count,
       subject_namespace, subject_workload, protocol, port
FROM flows LATERAL VIEW explode(peer_names) each AS told;
