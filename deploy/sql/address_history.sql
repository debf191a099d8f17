-- Who had an address, and when, by what flows to and from it prove: one row for each owner, with the first and the last flow.
-- Before the first and after the last nobody can tell.
SELECT peer_ip, peer_kind, peer_namespace, peer_pod, peer_uid, peer_workload, peer_node,
       min(time) AS first_time, max(coalesce(last_time, time)) AS latest_time, sum(count) AS flows
FROM flows
WHERE peer_kind <> 'loopback'
GROUP BY ALL
ORDER BY peer_ip, first_time, peer_kind, peer_uid NULLS LAST;
