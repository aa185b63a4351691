-- What tornado_status writes, in the same tables: one row a user, a log, and the head that numbers it.
CREATE TABLE user_status (
    email       text PRIMARY KEY,
    seq         bigint,
    last_seen   timestamptz,
    client_ip   inet,
    client_port integer,
    issuer      text,
    serial      text,
    first_seen  timestamptz,
    offline     boolean NOT NULL DEFAULT false,
    devices     jsonb
) WITH (fillfactor = 70);

CREATE FUNCTION user_device(
    issuer text, serial text, last_seen timestamptz, client_ip inet, client_port integer
) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'issuer', issuer, 'serial', serial,
        'client_ip', host(client_ip), 'client_port', client_port,
        'microseconds', (extract(epoch FROM last_seen) * 1000000)::bigint
    )
$$;

-- Of these devices each one once, but not the one of this certificate; the eight newest.
CREATE FUNCTION other_devices(devices jsonb, issuer text, serial text) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_agg(d ORDER BY (d->>'microseconds')::bigint DESC) FROM (
        SELECT d FROM (
            SELECT DISTINCT ON (d->>'issuer', d->>'serial') d
            FROM jsonb_array_elements(devices) e(d)
            WHERE d->>'serial' IS NOT NULL
              AND NOT (d->>'issuer' = $2 AND d->>'serial' = $3)
            ORDER BY d->>'issuer', d->>'serial', (d->>'microseconds')::bigint DESC
        ) each
        ORDER BY (d->>'microseconds')::bigint DESC LIMIT 8
    ) newest
$$;

CREATE TABLE check_in (
    seq         bigint PRIMARY KEY,
    at          timestamptz NOT NULL,
    event       text NOT NULL,
    email       text NOT NULL,
    client_ip   inet,
    client_port integer,
    issuer      text,
    serial      text,
    previous    bigint,
    last_seen   timestamptz
);

CREATE TABLE head (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    seq      bigint NOT NULL,
    stream   uuid NOT NULL,
    at       timestamptz NOT NULL
);

INSERT INTO head (seq, stream, at) VALUES (0, gen_random_uuid(), clock_timestamp());
