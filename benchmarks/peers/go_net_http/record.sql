-- One batch, as tornado_status writes it; see tornado_status/store/group_commit.py for the why of it.
PREPARE record_check_ins
    (text[], inet[], integer[], text[], text[], integer[], integer[], boolean) AS
WITH accepted AS MATERIALIZED (
    SELECT i.*, row_number() OVER (ORDER BY i.n) AS k, s.seq AS newest,
           i.before = 0 AND s.last_seen IS NULL AS is_new, i.before = 0 AND s.offline AS is_back
    FROM unnest($1, $2, $3, $4, $5, $6, $7) WITH ORDINALITY
         AS i(email, client_ip, client_port, issuer, serial, before, role, n)
    LEFT JOIN user_status s ON s.email = i.email
    WHERE NOT $8 OR s.email IS NOT NULL
), now AS MATERIALIZED (
    SELECT seq AS base, greatest(at, clock_timestamp()) AS at FROM head
), log AS (
    INSERT INTO check_in (seq, at, event, email, client_ip, client_port, issuer, serial, previous)
    SELECT base + k, at,
           CASE WHEN is_new THEN 'new' WHEN is_back THEN 'back' ELSE 'check-in' END,
           email, client_ip, client_port, issuer, serial,
           CASE WHEN before = 0 THEN newest WHEN NOT $8 THEN base + before
                ELSE (SELECT base + a.k FROM accepted a WHERE a.n = accepted.before) END
    FROM accepted, now
), status AS (
    INSERT INTO user_status AS u
        (email, seq, last_seen, client_ip, client_port, issuer, serial, first_seen, devices)
    SELECT email, base + k, at, client_ip, client_port, issuer, serial, at,
           CASE WHEN role = 2 THEN (
               SELECT other_devices(
                   jsonb_agg(user_device(a.issuer, a.serial, at, a.client_ip, a.client_port)),
                   accepted.issuer, accepted.serial)
               FROM accepted a WHERE a.email = accepted.email
           ) END
    FROM accepted, now WHERE role > 0 ORDER BY email
    ON CONFLICT (email) DO UPDATE SET
        seq = excluded.seq, last_seen = excluded.last_seen, client_ip = excluded.client_ip,
        client_port = excluded.client_port, issuer = excluded.issuer, serial = excluded.serial,
        first_seen = coalesce(u.first_seen, excluded.first_seen), offline = false,
        devices = CASE
            WHEN u.serial = excluded.serial AND u.issuer = excluded.issuer
                AND excluded.devices IS NULL THEN u.devices
            ELSE other_devices(
                coalesce(u.devices, '[]') || coalesce(excluded.devices, '[]')
                    || user_device(u.issuer, u.serial, u.last_seen, u.client_ip, u.client_port),
                excluded.issuer, excluded.serial)
        END
), moved AS (
    UPDATE head SET seq = head.seq + (SELECT count(*) FROM accepted), at = now.at FROM now
)
SELECT base, (extract(epoch FROM at) * 1000000)::bigint,
       ARRAY(SELECT n FROM accepted WHERE is_new), ARRAY(SELECT n FROM accepted WHERE is_back)
FROM now
