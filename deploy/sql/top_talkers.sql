-- Who talks to whom most: the 20 pairs of source workload and destination (outside the cluster an address), with flows and ports.
-- What a pod's own node has told as egress is not counted again where the other end's has told it as ingress.
SELECT CASE WHEN direction = 'egress' THEN subject_namespace ELSE peer_namespace END AS source_namespace,
       CASE WHEN direction = 'egress' THEN coalesce(subject_workload, subject_kind)
            ELSE coalesce(peer_workload, peer_ip) END AS source,
       CASE WHEN direction = 'egress' THEN peer_namespace ELSE subject_namespace END AS destination_namespace,
       CASE WHEN direction = 'egress' THEN coalesce(peer_workload, peer_ip)
            ELSE coalesce(subject_workload, subject_kind) END AS destination,
       sum(count) AS flows, count(DISTINCT port) AS ports
FROM flows
WHERE direction = 'egress' OR peer_kind <> 'pod'
GROUP BY ALL
ORDER BY flows DESC, source_namespace NULLS LAST, source, destination_namespace NULLS LAST, destination
LIMIT 20;
