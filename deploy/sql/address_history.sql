-- Who had an address, and when, by what flows of and to it prove: one row for each owner, with the first and the last flow.
-- Before the first and after the last nobody can tell. An address of the loopback is everybody's, and left out.
SELECT ip, kind, namespace, pod, uid, workload, node,
       min(time) AS first_time, max(latest) AS latest_time, sum(count) AS flows
FROM (
    SELECT peer_ip AS ip, peer_kind AS kind, peer_namespace AS namespace, peer_pod AS pod, peer_uid AS uid,
           peer_workload AS workload, peer_node AS node, time, coalesce(last_time, time) AS latest, count
    FROM flows
    WHERE peer_kind <> 'loopback'
    UNION ALL
    SELECT subject_ip, subject_kind, subject_namespace, subject_pod, subject_uid,
           subject_workload, subject_node, time, coalesce(last_time, time), count
    FROM flows
    WHERE subject_ip IS NOT NULL AND peer_kind <> 'loopback'
) AS ends
GROUP BY ALL
ORDER BY ip, first_time, kind, uid NULLS LAST;
