-- Version 1 of the schema of a log. {schema} is the quoted name of the schema, {lock} the key of the
-- advisory lock, {channel} the channel of NOTIFY, and {pending} the name of a setting.
--
-- Each statement can run again, so that a table that was dropped is created again.

CREATE TABLE IF NOT EXISTS {schema}.log (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    -- Random bits. They change when the positions of this log may be issued a second time.
    epoch bigint NOT NULL,
    -- Identifies the server, its timeline, and the tables.
    identity text NOT NULL,
    evicted_through bigint NOT NULL DEFAULT 0
);

CREATE TABLE IF NOT EXISTS {schema}.records (
    position bigint PRIMARY KEY,
    -- e: event; s: event that replaces the previous one; f: the topic is finished.
    kind "char" NOT NULL,
    -- Bytes of UTF-8. The type text does not allow NUL.
    topic bytea NOT NULL,
    event bytea NOT NULL,
    stored_at timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.05);

-- A transaction takes its positions while it holds the lock of the log, and holds the lock until
-- its commit. So the positions become visible in order.
CREATE SEQUENCE IF NOT EXISTS {schema}.positions;

-- Events of transactions that have not committed yet. A row is inserted and deleted in the same
-- transaction, so it never has to survive a crash.
CREATE UNLOGGED TABLE IF NOT EXISTS {schema}.inbox (
    transaction xid8 NOT NULL,
    n bigint GENERATED ALWAYS AS IDENTITY,
    is_first boolean NOT NULL,
    topic bytea NOT NULL,
    event bytea NOT NULL,
    PRIMARY KEY (transaction, n)
);

CREATE OR REPLACE FUNCTION {schema}.identity() RETURNS text LANGUAGE plpgsql STABLE AS $tower_sse$
DECLARE
    tables text := '{schema}.records'::regclass::oid || '.' || '{schema}.positions'::regclass::oid;
BEGIN
    -- The first eight digits of the name of a WAL file are the timeline. The control file can still
    -- have the old timeline after a promotion.
    RETURN (SELECT system_identifier FROM pg_control_system())
        || '/' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) || '/' || tables;
EXCEPTION WHEN insufficient_privilege OR feature_not_supported OR undefined_function THEN
    -- Services that replicate their storage may not have these functions.
    RETURN '/' || tables;
END
$tower_sse$;

-- Returns whether the log is the one that has issued its epoch: on the same server and timeline,
-- and with the newest record that the caller knows.
CREATE OR REPLACE FUNCTION {schema}.is_current(
    known_epoch bigint, known_position bigint, known_stored_at timestamptz
) RETURNS boolean LANGUAGE plpgsql STABLE AS $tower_sse$
BEGIN
    RETURN coalesce((
        SELECT log.identity = {schema}.identity() AND (
            known_epoch IS DISTINCT FROM log.epoch
            OR known_position <= log.evicted_through
            OR EXISTS (
                SELECT FROM {schema}.records
                WHERE records.position = known_position AND records.stored_at = known_stored_at
            )
        ) FROM {schema}.log
    ), false);
END
$tower_sse$;

-- Starts another epoch. Call it after the data of a server was replaced by an older copy while no
-- node was connected.
CREATE OR REPLACE FUNCTION {schema}.new_epoch() RETURNS void LANGUAGE plpgsql AS $tower_sse$
DECLARE
    newest bigint;
BEGIN
    PERFORM pg_advisory_xact_lock({lock});
    INSERT INTO {schema}.log (epoch, identity) VALUES (
        ('x' || replace(left(gen_random_uuid()::text, 13), '-', ''))::bit(48)::bigint,
        {schema}.identity()
    ) ON CONFLICT (only_row) DO UPDATE SET epoch = excluded.epoch, identity = excluded.identity;
    SELECT greatest(evicted_through, (SELECT max(position) FROM {schema}.records)) INTO newest FROM {schema}.log;
    -- A copy of the tables may lack the sequence.
    IF newest > (SELECT last_value FROM {schema}.positions) THEN
        PERFORM setval('{schema}.positions', newest);
    END IF;
    PERFORM pg_notify('{channel}', '');
END
$tower_sse$;

CREATE OR REPLACE FUNCTION {schema}.bounds(
    known_epoch bigint, known_position bigint, known_stored_at timestamptz,
    OUT epoch bigint, OUT evicted_through bigint, OUT last bigint
) LANGUAGE plpgsql AS $tower_sse$
BEGIN
    IF NOT {schema}.is_current(known_epoch, known_position, known_stored_at) THEN
        PERFORM pg_advisory_xact_lock({lock});
        -- Another node may have started the epoch.
        IF NOT {schema}.is_current(known_epoch, known_position, known_stored_at) THEN
            PERFORM {schema}.new_epoch();
        END IF;
    END IF;
    SELECT log.epoch, log.evicted_through,
        greatest(log.evicted_through, (SELECT max(records.position) FROM {schema}.records))
    INTO epoch, evicted_through, last FROM {schema}.log;
END
$tower_sse$;

-- Appends records without records of others between them. With `since`, only if no record of the
-- topic follows this position in this epoch, and at most `max_examined` records do. Otherwise the
-- result is NULL.
CREATE OR REPLACE FUNCTION {schema}.append(
    kinds "char"[], topics bytea[], events bytea[],
    expected_epoch bigint, since bigint, max_examined bigint, lock_timeout_ms bigint,
    known_epoch bigint, known_position bigint, known_stored_at timestamptz,
    OUT epoch bigint, OUT last bigint, OUT stored_at timestamptz
) LANGUAGE plpgsql SET enable_seqscan = off SET enable_sort = off SET jit = off AS $tower_sse$
DECLARE
    evicted_through bigint;
    examined bigint;
    has_changed boolean;
    first bigint;
BEGIN
    -- In the other levels, the comparison below would not see the records of other transactions.
    IF since IS NOT NULL AND current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'the isolation level of a node must be read committed'
            USING HINT = 'Use ALTER ROLE ... SET default_transaction_isolation = ''read committed''.';
    END IF;
    PERFORM set_config('lock_timeout', lock_timeout_ms::text, true);
    PERFORM pg_advisory_xact_lock({lock});
    IF NOT {schema}.is_current(known_epoch, known_position, known_stored_at) THEN
        PERFORM {schema}.new_epoch();
    END IF;
    SELECT log.epoch, log.evicted_through INTO epoch, evicted_through FROM {schema}.log;
    IF since IS NOT NULL THEN
        IF epoch <> expected_epoch OR evicted_through > since THEN
            RETURN;
        END IF;
        SELECT count(*), coalesce(bool_or(newer.topic = topics[1]), false) INTO examined, has_changed FROM (
            SELECT records.topic FROM {schema}.records WHERE records.position > since
            ORDER BY records.position LIMIT max_examined + 1
        ) AS newer;
        IF has_changed OR examined > max_examined THEN
            RETURN;
        END IF;
    END IF;
    first := nextval('{schema}.positions');
    last := first + cardinality(kinds) - 1;
    IF last > first THEN
        PERFORM setval('{schema}.positions', last);
    END IF;
    stored_at := clock_timestamp();
    INSERT INTO {schema}.records
        SELECT first + new.n - 1, new.kind, new.topic, new.event, append.stored_at
        FROM unnest(kinds, topics, events) WITH ORDINALITY AS new (kind, topic, event, n);
    PERFORM pg_notify('{channel}', '');
END
$tower_sse$;

-- Returns the records after a position, of these topics or of all, and then one row with a NULL as
-- its kind: the end of the page, and the state of the log.
--
-- The function is stable, so all of its queries see the same snapshot. A plan without the index can
-- be cached while the table is small, so the other plans are disabled. JIT would compile the plans,
-- because a disabled plan of the table `log` has a high cost.
CREATE OR REPLACE FUNCTION {schema}.page(
    after bigint, topics bytea[], max_examined bigint, max_records bigint, max_bytes bigint,
    known_epoch bigint, known_position bigint, known_stored_at timestamptz
) RETURNS TABLE (
    "position" bigint, kind "char", topic bytea, event bytea, stored_at timestamptz,
    epoch bigint, evicted_through bigint, last bigint, is_current boolean
) LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_sort = off SET enable_bitmapscan = off SET jit = off AS $tower_sse$
DECLARE
    bytes bigint := 0;
    count bigint := 0;
    through bigint;
    record record;
BEGIN
    SELECT log.epoch, log.evicted_through,
        greatest(log.evicted_through, (SELECT max(records.position) FROM {schema}.records))
    INTO page.epoch, page.evicted_through, page.last FROM {schema}.log;
    through := page.last;
    IF topics IS NOT NULL THEN
        SELECT records.position INTO through FROM {schema}.records WHERE records.position > after
        ORDER BY records.position OFFSET max_examined - 1 LIMIT 1;
        through := coalesce(through, page.last);
    END IF;
    FOR record IN
        SELECT * FROM {schema}.records
        WHERE records.position > after AND records.position <= through
            AND (topics IS NULL OR records.topic = ANY (topics))
        ORDER BY records.position LIMIT max_records
    LOOP
        "position" := record.position;
        kind := record.kind;
        topic := record.topic;
        event := record.event;
        stored_at := record.stored_at;
        RETURN NEXT;
        count := count + 1;
        bytes := bytes + octet_length(record.event);
        IF count >= max_records OR bytes >= max_bytes THEN
            through := record.position;
            EXIT;
        END IF;
    END LOOP;
    "position" := greatest(through, page.evicted_through);
    kind := NULL;
    topic := NULL;
    event := NULL;
    stored_at := NULL;
    is_current := {schema}.is_current(known_epoch, known_position, known_stored_at);
    RETURN NEXT;
END
$tower_sse$;

-- Deletes the oldest records, at most `max_deleted`, and returns their number. It does nothing while
-- another node deletes.
CREATE OR REPLACE FUNCTION {schema}.evict(
    max_records bigint, max_age_seconds double precision, max_deleted bigint
) RETURNS bigint LANGUAGE plpgsql
SET enable_seqscan = off SET enable_sort = off SET enable_bitmapscan = off SET jit = off AS $tower_sse$
DECLARE
    after bigint;
    through bigint;
    deleted bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock({lock} + 1) THEN
        RETURN 0;
    END IF;
    SELECT log.evicted_through INTO after FROM {schema}.log;
    SELECT max(oldest.position) INTO through FROM (
        SELECT records.position, records.stored_at FROM {schema}.records
        WHERE records.position > after ORDER BY records.position LIMIT max_deleted
    ) AS oldest
    WHERE oldest.position <= (SELECT max(records.position) FROM {schema}.records) - max_records
        OR oldest.stored_at < clock_timestamp() - make_interval(secs => max_age_seconds);
    DELETE FROM {schema}.records WHERE records.position <= through;
    GET DIAGNOSTICS deleted = ROW_COUNT;
    RETURN deleted;
END
$tower_sse$;

-- Every deletion is reported as a gap, also the deletions of other programs.
CREATE OR REPLACE FUNCTION {schema}.note_deleted() RETURNS trigger LANGUAGE plpgsql AS $tower_sse$
BEGIN
    UPDATE {schema}.log SET evicted_through = greatest(evicted_through, (SELECT max(position) FROM deleted))
    WHERE EXISTS (SELECT FROM deleted);
    RETURN NULL;
END
$tower_sse$;
DROP TRIGGER IF EXISTS note_deleted ON {schema}.records;
CREATE TRIGGER note_deleted AFTER DELETE ON {schema}.records
    REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION {schema}.note_deleted();

CREATE OR REPLACE FUNCTION {schema}.note_truncated() RETURNS trigger LANGUAGE plpgsql AS $tower_sse$
BEGIN
    UPDATE {schema}.log SET evicted_through = greatest(evicted_through, (SELECT max(position) FROM {schema}.records));
    RETURN NULL;
END
$tower_sse$;
DROP TRIGGER IF EXISTS note_truncated ON {schema}.records;
CREATE TRIGGER note_truncated BEFORE TRUNCATE ON {schema}.records
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.note_truncated();

-- Publishes an event when the transaction commits. The event is in the same format as that of the
-- crate. A NULL as the event name means no name.
CREATE OR REPLACE FUNCTION {schema}.publish(topic text, event text, data text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $tower_sse$
DECLARE
    transaction xid8 := pg_current_xact_id();
    is_first boolean := current_setting('{pending}', true) IS DISTINCT FROM transaction::text;
BEGIN
    IF topic IS NULL OR data IS NULL THEN
        RAISE EXCEPTION 'the topic and the data of an event must not be NULL' USING ERRCODE = 'null_value_not_allowed';
    ELSIF starts_with(topic, 'tower-sse/') THEN
        RAISE EXCEPTION 'the topic % is reserved for the hub; choose another topic', topic
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF event IN ('gap', 'hub-cursor') THEN
        RAISE EXCEPTION 'the event name % is reserved for the events of a hub; choose another name', event
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF event = '' THEN
        RAISE EXCEPTION 'the event name is empty; use NULL for an event without a name'
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF event LIKE E'%\n%' OR event LIKE E'%\r%' THEN
        RAISE EXCEPTION 'the event name % contains a line break', quote_literal(event)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- One trigger moves all events of the transaction. A rollback to an earlier savepoint also
    -- restores the setting. After SET CONSTRAINTS, the trigger runs during the INSERT.
    IF is_first THEN
        PERFORM set_config('{pending}', transaction::text, true);
    END IF;
    INSERT INTO {schema}.inbox (transaction, is_first, topic, event) VALUES (
        transaction, is_first, convert_to(topic, 'UTF8'),
        convert_to(
            coalesce('event: ' || event || E'\n', '') || 'data: '
            || replace(replace(replace(data, E'\r\n', E'\n'), E'\r', E'\n'), E'\n', E'\ndata: ') || E'\n\n',
            'UTF8'
        )
    );
END
$tower_sse$;

-- Runs at the end of the transaction, and moves its events to the log.
CREATE OR REPLACE FUNCTION {schema}.move_to_log() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $tower_sse$
BEGIN
    -- A deferred trigger of the application may publish after this one.
    PERFORM set_config('{pending}', '', true);
    PERFORM pg_advisory_xact_lock({lock});
    IF NOT {schema}.is_current(NULL, NULL, NULL) THEN
        PERFORM {schema}.new_epoch();
    END IF;
    INSERT INTO {schema}.records
        SELECT nextval('{schema}.positions'), 'e', mine.topic, mine.event, clock_timestamp() FROM (
            SELECT inbox.topic, inbox.event FROM {schema}.inbox
            WHERE inbox.transaction = pg_current_xact_id() ORDER BY inbox.n
        ) AS mine;
    DELETE FROM {schema}.inbox WHERE inbox.transaction = pg_current_xact_id();
    PERFORM pg_notify('{channel}', '');
    RETURN NULL;
END
$tower_sse$;
DROP TRIGGER IF EXISTS move_to_log ON {schema}.inbox;
CREATE CONSTRAINT TRIGGER move_to_log AFTER INSERT ON {schema}.inbox
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.is_first) EXECUTE FUNCTION {schema}.move_to_log();
-- `session_replication_role = replica` does not disable it.
ALTER TABLE {schema}.inbox ENABLE ALWAYS TRIGGER move_to_log;

-- Each role with USAGE on the schema can publish.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA {schema} FROM PUBLIC;
GRANT EXECUTE ON FUNCTION {schema}.publish(text, text, text) TO PUBLIC;

DO $tower_sse$
BEGIN
    IF NOT EXISTS (SELECT FROM {schema}.log) THEN
        PERFORM {schema}.new_epoch();
    END IF;
END
$tower_sse$;
