-- Whose flows are denied most: the 20 workloads, with how many flows, how many of them passed all the same (nothing enforces), to how
-- many addresses and ports, and when last.
SELECT subject_namespace, subject_workload, direction,
       sum(count) AS flows,
       sum(CASE WHEN reach = 'reached' THEN count ELSE 0 END) AS passed,
       count(DISTINCT peer_ip) AS addresses, count(DISTINCT port) AS ports,
       max(coalesce(last_time, time)) AS latest_time
FROM flows
WHERE verdict = 'denied'
GROUP BY ALL
ORDER BY flows DESC, subject_namespace NULLS LAST, subject_workload NULLS LAST, direction
LIMIT 20;
