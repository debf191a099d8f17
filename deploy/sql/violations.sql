-- Which denied traffic was there: who tried to reach whom, by which policy it is denied, what became of it (`finding`), how often, and
-- when first and last. One flow between two pods with agents is two rows, one a direction, as two rules may be broken.
SELECT direction,
       CASE WHEN direction = 'egress' THEN subject_kind ELSE peer_kind END AS source_kind,
       CASE WHEN direction = 'egress' THEN subject_namespace ELSE peer_namespace END AS source_namespace,
       CASE WHEN direction = 'egress' THEN subject_workload ELSE peer_workload END AS source_workload,
       CASE WHEN direction = 'egress' THEN peer_kind ELSE subject_kind END AS destination_kind,
       CASE WHEN direction = 'egress' THEN peer_namespace ELSE subject_namespace END AS destination_namespace,
       CASE WHEN direction = 'egress' THEN peer_workload ELSE subject_workload END AS destination_workload,
       CASE WHEN peer_kind = 'external' THEN peer_ip END AS external_ip,
       protocol, port, policy, finding, finding_cause,
       sum(count) AS flows, min(time) AS first_time, max(coalesce(last_time, time)) AS latest_time
FROM flows
WHERE verdict = 'denied'
GROUP BY ALL
ORDER BY flows DESC, direction, source_namespace NULLS LAST, source_workload NULLS LAST, destination_namespace NULLS LAST,
         destination_workload NULLS LAST, external_ip NULLS LAST, protocol, port, policy, finding, finding_cause NULLS LAST;
