-- Which rules decided flows, of all nodes and agent runs together: how many, how many that no other rule allowed, by how many workloads,
-- on how many nodes, since when and until when. The direction is the rule's: both ends' nodes judge by the rules of their own pods.
-- `surely` leaves out what an agent that was killed may have told twice.
SELECT rule, direction, verdict, max(rule_path) AS rule_path,
       sum(count) AS flows,
       sum(CASE WHEN is_sole THEN count ELSE 0 END) AS sole_flows,
       sum(CASE WHEN maybe_repeated THEN 0 ELSE count END) AS surely,
       count(DISTINCT concat(coalesce(subject_namespace, ''), '/', coalesce(subject_workload, ''))) AS workloads,
       count(DISTINCT node) AS nodes,
       min(time) AS first_time, max(coalesce(last_time, time)) AS latest_time
FROM rule_matches
GROUP BY rule, direction, verdict
ORDER BY rule, direction, verdict;
