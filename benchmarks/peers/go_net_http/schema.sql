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
    offline     boolean NOT NULL DEFAULT false
) WITH (fillfactor = 70);

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
