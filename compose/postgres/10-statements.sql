-- For whoever asks which statements are slow: select * from pg_stat_statements order by total_exec_time desc limit 10;
create extension if not exists pg_stat_statements;
