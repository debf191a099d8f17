-- What each file of the window says of its hour: from when until when all is in it that was not lost, and how many records were lost in
-- the stretch that it was made of. Rows of one run with the same `lost_before` (what it had lost by then) tell of one loss. DuckDB only: the other two do not show what stands in a file's footer. Places as in views.sql. A time for which no row stands here
-- is one that nobody recorded; `netaudit flows` says all of it in one line.
SELECT DISTINCT told ->> 'node' AS node, told ->> 'run' AS run,
       make_timestamp(CAST(told ->> 'from' AS BIGINT) // 1000) AT TIME ZONE 'UTC' AS complete_from,
       make_timestamp(CAST(told ->> 'until' AS BIGINT) // 1000) AT TIME ZONE 'UTC' AS complete_until,
       CAST(told ->> 'lost_after' AS BIGINT) - CAST(told ->> 'lost_before' AS BIGINT) AS lost,
       CAST(told ->> 'lost_before' AS BIGINT) AS lost_before
FROM (
    SELECT CAST(decode(value) AS JSON) AS told
    FROM parquet_kv_metadata('{STORE}/flows/date=*/hour=*/*.parquet')
    WHERE decode(key) = 'netaudit.mark'
)
WHERE complete_from < TIMESTAMPTZ '{UNTIL}+00' AND complete_until > TIMESTAMPTZ '{SINCE}+00'
ORDER BY node, complete_from, run;
