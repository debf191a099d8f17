-- What DNS called the addresses that flows went to: by name and address, who went there, how often, and when first and last.
SELECT name, peer_ip, asked, subject_namespace, subject_workload, protocol, port,
       sum(count) AS flows, min(time) AS first_time, max(coalesce(last_time, time)) AS latest_time
FROM flow_names
GROUP BY ALL
ORDER BY name, peer_ip, asked, subject_namespace NULLS LAST, subject_workload NULLS LAST, protocol, port;
