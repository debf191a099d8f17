-- What one pod did and what was done to it, in order of time, as its own node and the other ends' nodes saw it.
-- In the place of 'shop' and 'web-0' goes the pod, twice.
SELECT time, last_time, count, concat(run, '-', sequence) AS flow_id, direction, subject_namespace, subject_pod, subject_ip, actor_comm,
       peer_kind, peer_namespace, peer_pod, peer_ip, protocol, port, verdict, policy, outcome, finding
FROM flows
WHERE (subject_namespace = 'shop' AND subject_pod = 'web-0') OR (peer_namespace = 'shop' AND peer_pod = 'web-0')
ORDER BY time, run, sequence;
