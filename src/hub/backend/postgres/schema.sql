-- Version 4 of the schema of a log. {schema} is the quoted name of the schema, {lock} the key of
-- the advisory lock, and {pending} and {evicting} the names of settings.
--
-- Each statement can run again, so that a table that was dropped is created again, and an older
-- version is updated. Nodes of the older version use the functions until they connect again. An
-- update must not take a lock of a table that conflicts with INSERT, UPDATE or DELETE.

CREATE TABLE IF NOT EXISTS {schema}.log (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    -- Changes when the positions of this log may be issued a second time. A later epoch is greater.
    epoch bigint NOT NULL,
    -- Identifies the server, its timeline, and the tables.
    identity text NOT NULL,
    evicted_through bigint NOT NULL DEFAULT 0,
    -- Set if there may be records up to `evicted_through`.
    has_leftovers boolean NOT NULL DEFAULT false
);

CREATE TABLE IF NOT EXISTS {schema}.records (
    -- A greater position would leave no positions for later records.
    position bigint PRIMARY KEY CHECK (position BETWEEN 1 AND {max_position}),
    -- e: event; s: event that replaces the previous one; f: the topic is finished;
    -- r: the topic is removed.
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

-- The channel of NOTIFY. A role that knows the name could read and forge notifications, which
-- contain events. So the name is random, and other roles may not read it. The functions below
-- insert it.
CREATE TABLE IF NOT EXISTS {schema}.channel (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    name text NOT NULL DEFAULT replace(gen_random_uuid()::text, '-', '')
);

-- Listens to the channel. The text of the query, which other roles may be able to read in
-- pg_stat_activity, does not contain the name.
CREATE OR REPLACE FUNCTION {schema}.listen() RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $tower_sse$
BEGIN
    INSERT INTO {schema}.channel DEFAULT VALUES ON CONFLICT DO NOTHING;
    EXECUTE format('LISTEN %I', (SELECT channel.name FROM {schema}.channel));
END
$tower_sse$;

-- Runs as the owner of the schema. Otherwise a role that may not call one of the functions below
-- would find another identity than the other roles, and start a new epoch.
CREATE OR REPLACE FUNCTION {schema}.identity() RETURNS text LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $tower_sse$
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
-- and with the newest record that the caller knows. A log with an earlier epoch than that of the
-- caller is a copy from an earlier time. Another node may have started a later epoch.
CREATE OR REPLACE FUNCTION {schema}.is_current(
    known_epoch bigint, known_position bigint, known_stored_at timestamptz
) RETURNS boolean LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $tower_sse$
BEGIN
    RETURN coalesce((
        SELECT log.identity = {schema}.identity() AND (
            known_epoch IS NULL OR known_epoch < log.epoch
            OR known_epoch = log.epoch AND (
                known_position <= log.evicted_through
                OR EXISTS (
                    SELECT FROM {schema}.records
                    WHERE records.position = known_position AND records.stored_at = known_stored_at
                )
            )
        ) FROM {schema}.log
    ), false);
END
$tower_sse$;

-- Sets the sequence to the newest position if the sequence is behind this position. Another program
-- may have inserted records with positions of its own, or set the sequence back. A copy of the
-- tables may lack the value of the sequence.
CREATE OR REPLACE FUNCTION {schema}.pass_newest() RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $tower_sse$
DECLARE
    newest bigint;
BEGIN
    SELECT log.evicted_through INTO newest FROM {schema}.log;
    -- In a serializable transaction, this read would conflict with other transactions that publish.
    IF current_setting('transaction_isolation') = 'read committed' THEN
        newest := greatest(newest, (SELECT max(position) FROM {schema}.records WHERE position > newest));
    END IF;
    IF newest > (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {schema}.positions) THEN
        PERFORM setval('{schema}.positions', newest);
    END IF;
END
$tower_sse$;

-- Sends the records at and after the position `first` to the followers, with the position of the
-- record before them. A follower that has read the log up to this position need not read these
-- records. If the records do not fit, or `first` is NULL, the notification is empty, and the
-- followers read the log. They also read the log once a second.
--
-- With `first`, the caller holds the lock of the log, sees all records of earlier transactions, and
-- has excluded plans without the index.
--
-- If a session listens and stays in a transaction, the queue of the server becomes full, and NOTIFY
-- fails. So nothing is sent if the queue is nearly full, and no records if more than 1 % of it is
-- in use (80 MB by default). Only the first notification of a transaction contains records. The
-- later ones are empty, so the server sends them once.
--
-- A notification also excludes PREPARE TRANSACTION, so that no prepared transaction holds the lock
-- of the log. Without a notification, a deferred trigger cannot distinguish it from a commit.
--
-- Callers can make the server report statements and plans, which contain the channel, as messages
-- to the client. The setting of client_min_messages excludes this.
CREATE OR REPLACE FUNCTION {schema}.notify_of(first bigint) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $tower_sse$
DECLARE
    usage double precision := pg_notification_queue_usage();
    channel text := (SELECT channel.name FROM {schema}.channel);
    -- A payload must be somewhat shorter than a page of the server, which usually has 8,192 bytes.
    max_bytes bigint := current_setting('block_size')::bigint - 1024;
    payload text := '';
    record record;
BEGIN
    IF usage >= 0.9 THEN
        RETURN;
    END IF;
    IF channel IS NULL AND current_setting('transaction_isolation') = 'read committed' THEN
        INSERT INTO {schema}.channel DEFAULT VALUES ON CONFLICT DO NOTHING;
        channel := (SELECT channel.name FROM {schema}.channel);
    END IF;
    IF channel IS NULL THEN
        -- The snapshot is older than the name. This notification only excludes PREPARE.
        PERFORM pg_notify('tower_sse', '');
        RETURN;
    END IF;
    IF first IS NOT NULL AND usage < 0.01 THEN
        SELECT log.epoch || ' ' || log.evicted_through || ' ' || greatest(log.evicted_through, previous.position)
        INTO payload FROM {schema}.log LEFT JOIN LATERAL (
            SELECT records.position, records.xmin FROM {schema}.records
            WHERE records.position > log.evicted_through AND records.position < first
            ORDER BY records.position DESC LIMIT 1
        ) AS previous ON true
        WHERE previous.xmin IS DISTINCT FROM pg_current_xact_id()::xid;
        FOR record IN
            SELECT * FROM {schema}.records WHERE records.position >= first ORDER BY records.position
        LOOP
            -- Another program may have inserted a record that has no such text.
            IF octet_length(payload) + octet_length(record.topic) + octet_length(record.event) <= max_bytes
                AND record.kind IN ('e', 's', 'f', 'r') AND isfinite(record.stored_at)
            THEN
                payload := payload || E'\n' || record.position || ' ' || record.kind::text || ' '
                    || (extract(epoch FROM record.stored_at) * 1000000)::bigint || ' '
                    || translate(encode(record.topic, 'base64'), E'\n', '') || ' '
                    || translate(encode(record.event, 'base64'), E'\n', '');
            ELSE
                payload := NULL;
                EXIT;
            END IF;
        END LOOP;
    END IF;
    PERFORM pg_notify(channel, CASE WHEN octet_length(payload) <= max_bytes THEN payload ELSE '' END);
END
$tower_sse$;

-- Makes the followers read the log.
CREATE OR REPLACE FUNCTION {schema}.notify() RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $tower_sse$
BEGIN
    PERFORM {schema}.notify_of(NULL);
END
$tower_sse$;

-- Chooses the epoch of each inserted row, even if the row comes from a dump: 42 bits of the time in
-- milliseconds, and 21 random bits. The clock may be behind, so the epoch is also greater than the
-- given one.
CREATE OR REPLACE FUNCTION {schema}.choose_epoch() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $tower_sse$
BEGIN
    NEW.epoch := greatest((extract(epoch FROM clock_timestamp()) * 1000)::bigint, (NEW.epoch >> 21) + 1);
    NEW.epoch := (NEW.epoch << 21) | (('x' || left(gen_random_uuid()::text, 6))::bit(24)::bigint >> 3);
    RETURN NEW;
END
$tower_sse$;

-- Starts an epoch that is later than that of the log and `known_epoch`.
CREATE OR REPLACE FUNCTION {schema}.new_epoch_after(known_epoch bigint) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $tower_sse$
BEGIN
    PERFORM pg_advisory_xact_lock({lock});
    -- The trigger of the table chooses a greater epoch.
    INSERT INTO {schema}.log (epoch, identity)
        VALUES (greatest(known_epoch, (SELECT log.epoch FROM {schema}.log), 0), {schema}.identity())
        ON CONFLICT (only_row) DO UPDATE SET epoch = excluded.epoch, identity = excluded.identity;
    PERFORM {schema}.pass_newest();
    PERFORM {schema}.notify();
END
$tower_sse$;

-- Starts another epoch. Call it after the data of a server was replaced by an older copy while no
-- node was connected.
CREATE OR REPLACE FUNCTION {schema}.new_epoch() RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $tower_sse$
BEGIN
    PERFORM {schema}.new_epoch_after(NULL);
END
$tower_sse$;

CREATE OR REPLACE FUNCTION {schema}.bounds(
    known_epoch bigint, known_position bigint, known_stored_at timestamptz,
    OUT epoch bigint, OUT evicted_through bigint, OUT last bigint
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '1500ms' AS $tower_sse$
BEGIN
    -- The requests of a connected node that only reads do not use these tables. A cast fails if its
    -- table does not exist. The node then connects again, and creates the table.
    PERFORM '{schema}.inbox'::regclass, '{schema}.channel'::regclass;
    IF NOT {schema}.is_current(known_epoch, known_position, known_stored_at) THEN
        PERFORM set_config('lock_timeout', '1000', true);
        PERFORM pg_advisory_xact_lock({lock});
        -- Another node may have started the epoch.
        IF NOT {schema}.is_current(known_epoch, known_position, known_stored_at) THEN
            PERFORM {schema}.new_epoch_after(known_epoch);
        END IF;
    END IF;
    SELECT log.epoch, log.evicted_through,
        greatest(log.evicted_through, (
            SELECT max(records.position) FROM {schema}.records WHERE records.position > log.evicted_through
        ))
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
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_sort = off SET jit = off AS $tower_sse$
DECLARE
    evicted_through bigint;
    examined bigint;
    has_changed boolean;
    first bigint;
BEGIN
    -- In the other levels, this function would not see what other transactions have committed while
    -- it waited for the lock.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'the isolation level of a node must be read committed'
            USING HINT = 'Use ALTER ROLE ... SET default_transaction_isolation = ''read committed''.';
    END IF;
    PERFORM set_config('lock_timeout', lock_timeout_ms::text, true);
    PERFORM pg_advisory_xact_lock({lock});
    IF NOT {schema}.is_current(known_epoch, known_position, known_stored_at) THEN
        -- If the first check has waited for a truncation, it has seen the empty table, but not the
        -- new state of the log.
        IF NOT {schema}.is_current(known_epoch, known_position, known_stored_at) THEN
            PERFORM {schema}.new_epoch_after(known_epoch);
        END IF;
    END IF;
    SELECT log.epoch INTO epoch FROM {schema}.log;
    IF since IS NOT NULL THEN
        IF epoch <> expected_epoch THEN
            RETURN;
        END IF;
        SELECT count(*), coalesce(bool_or(newer.topic = topics[1]), false) INTO examined, has_changed FROM (
            SELECT records.topic FROM {schema}.records WHERE records.position > since
            ORDER BY records.position LIMIT max_examined + 1
        ) AS newer;
        -- Read after the records, because records can be deleted without the lock.
        SELECT log.evicted_through INTO evicted_through FROM {schema}.log;
        IF has_changed OR examined > max_examined OR evicted_through > since THEN
            RETURN;
        END IF;
    END IF;
    PERFORM {schema}.pass_newest();
    first := nextval('{schema}.positions');
    last := first + cardinality(kinds) - 1;
    IF last > first THEN
        PERFORM setval('{schema}.positions', last);
    END IF;
    stored_at := clock_timestamp();
    INSERT INTO {schema}.records
        SELECT first + new.n - 1, new.kind, new.topic, new.event, append.stored_at
        FROM unnest(kinds, topics, events) WITH ORDINALITY AS new (kind, topic, event, n);
    IF cardinality(kinds) <= {max_notified} THEN
        PERFORM {schema}.notify_of(first);
    ELSE
        PERFORM {schema}.notify();
    END IF;
END
$tower_sse$;

-- Returns the records after a position, of these topics or of all, and then one row with a NULL as
-- its kind: the end of the page, and the state of the log.
--
-- The function is stable, so all of its queries see the same snapshot. A plan without the index can
-- be cached while the table is small, so the other plans are disabled. JIT would compile the plans,
-- because a disabled plan of the table `log` has a high cost.
--
-- The generic plan keeps the topics in a hash table. A plan for the given topics would compare each
-- record with each topic if there are so many topics that the planner expects too large a table.
CREATE OR REPLACE FUNCTION {schema}.page(
    after bigint, topics bytea[], max_examined bigint, max_records bigint, max_bytes bigint,
    known_epoch bigint, known_position bigint, known_stored_at timestamptz
) RETURNS TABLE (
    "position" bigint, kind "char", topic bytea, event bytea, stored_at timestamptz,
    epoch bigint, evicted_through bigint, last bigint, is_current boolean
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET lock_timeout = '1500ms'
SET enable_seqscan = off SET enable_sort = off SET enable_bitmapscan = off SET jit = off
SET plan_cache_mode = force_generic_plan AS $tower_sse$
DECLARE
    bytes bigint := 0;
    count bigint := 0;
    through bigint;
    too_large bigint;
    record record;
BEGIN
    SELECT log.epoch, log.evicted_through,
        greatest(log.evicted_through, (
            SELECT max(records.position) FROM {schema}.records WHERE records.position > log.evicted_through
        ))
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
            -- The size of a value is known without reading it.
            AND CASE WHEN octet_length(records.topic) + octet_length(records.event) > {max_record_bytes} THEN true
                ELSE topics IS NULL OR records.topic IN (SELECT unnest(topics)) END
        ORDER BY records.position LIMIT max_records
    LOOP
        -- Another program has inserted a record that no node can read in time. The record counts as
        -- evicted. Only the beginning of a page can be an evicted range, so the page ends before
        -- the record if it has other records.
        IF octet_length(record.topic) + octet_length(record.event) > {max_record_bytes} THEN
            through := CASE WHEN count > 0 THEN record.position - 1 ELSE record.position END;
            too_large := CASE WHEN count = 0 THEN record.position END;
            EXIT;
        END IF;
        "position" := record.position;
        kind := record.kind;
        topic := record.topic;
        event := record.event;
        stored_at := record.stored_at;
        RETURN NEXT;
        count := count + 1;
        bytes := bytes + octet_length(record.topic) + octet_length(record.event);
        IF count >= max_records OR bytes >= max_bytes THEN
            through := record.position;
            EXIT;
        END IF;
    END LOOP;
    page.evicted_through := greatest(page.evicted_through, too_large);
    "position" := greatest(through, page.evicted_through);
    kind := NULL;
    topic := NULL;
    event := NULL;
    stored_at := NULL;
    -- If this function has waited for a truncation, it sees the empty table, but not the new state
    -- of the log. The table then has another file than in the snapshot of this function.
    is_current := {schema}.is_current(known_epoch, known_position, known_stored_at)
        AND (SELECT relfilenode FROM pg_class WHERE pg_class.oid = '{schema}.records'::regclass)
            = pg_relation_filenode('{schema}.records');
    RETURN NEXT;
END
$tower_sse$;

-- Deletes the oldest records: at most `max_deleted`, and none after the record with which they
-- reach `max_bytes`. Returns whether more may have to be deleted. Does nothing and returns NULL
-- while another node deletes.
CREATE OR REPLACE FUNCTION {schema}.evict(
    max_records bigint, max_age_seconds double precision, max_deleted bigint, max_bytes bigint
) RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '1500ms'
SET enable_seqscan = off SET enable_sort = off SET enable_bitmapscan = off SET jit = off AS $tower_sse$
DECLARE
    after bigint;
    through bigint;
    examined_through bigint;
    deleted bigint;
    has_leftovers boolean;
    has_more boolean;
BEGIN
    -- Another program may have deleted records in a transaction that is still open.
    PERFORM set_config('lock_timeout', '100', true);
    IF NOT pg_try_advisory_xact_lock({lock} + 1) THEN
        RETURN NULL;
    END IF;
    SELECT log.evicted_through, log.has_leftovers INTO after, has_leftovers FROM {schema}.log;
    PERFORM set_config('{evicting}', 'on', true);
    -- The scan begins at the first retained record. While a transaction of another program is open,
    -- a scan from an earlier position would visit every deleted record again.
    SELECT max(oldest.position), max(oldest.position) FILTER (WHERE
            oldest.position <= (SELECT max(records.position) FROM {schema}.records WHERE records.position > after)
                - max_records
            OR oldest.stored_at < clock_timestamp() - make_interval(secs => max_age_seconds)
        )
    INTO examined_through, through FROM (
        SELECT records.position, records.stored_at,
            sum(octet_length(records.event)) OVER (ORDER BY records.position) - octet_length(records.event) AS bytes
        FROM (
            SELECT * FROM {schema}.records WHERE records.position > after
            ORDER BY records.position LIMIT max_deleted
        ) AS records
    ) AS oldest
    WHERE oldest.bytes < max_bytes;
    DELETE FROM {schema}.records WHERE records.position > after AND records.position <= through;
    GET DIAGNOSTICS deleted = ROW_COUNT;
    -- A trigger or a policy of another program may prevent the deletion. The next batch would then
    -- try to delete the same records.
    has_more := deleted > 0 AND coalesce(through = examined_through, false);
    IF has_leftovers AND deleted = 0 THEN
        DELETE FROM {schema}.records WHERE records.position IN (
            SELECT old.position FROM {schema}.records AS old
            WHERE old.position <= after ORDER BY old.position LIMIT max_deleted
        );
        GET DIAGNOSTICS deleted = ROW_COUNT;
        has_more := deleted >= max_deleted;
        IF NOT has_more THEN
            -- Another program may have deleted later records in the meantime.
            UPDATE {schema}.log SET has_leftovers = false WHERE log.evicted_through = after;
        END IF;
    END IF;
    PERFORM set_config('{evicting}', '', true);
    RETURN has_more;
END
$tower_sse$;

-- Every deletion is reported as a gap, also the deletions of other programs.
CREATE OR REPLACE FUNCTION {schema}.note_deleted() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $tower_sse$
BEGIN
    UPDATE {schema}.log SET
        evicted_through = greatest(evicted_through, (SELECT max(position) FROM deleted)),
        -- Other programs may delete records in the middle of the log.
        has_leftovers = has_leftovers OR current_setting('{evicting}', true) IS DISTINCT FROM 'on'
    WHERE EXISTS (SELECT FROM deleted);
    RETURN NULL;
END
$tower_sse$;

CREATE OR REPLACE FUNCTION {schema}.note_truncated() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $tower_sse$
BEGIN
    -- At a higher isolation level, the transaction may not see the newest records, but removes
    -- them, too. The lock of the table prevents appends, so the sequence has reached the positions
    -- of these records.
    UPDATE {schema}.log SET evicted_through = greatest(
        evicted_through,
        (SELECT max(position) FROM {schema}.records),
        (SELECT CASE WHEN is_called THEN last_value END FROM {schema}.positions)
    );
    RETURN NULL;
END
$tower_sse$;

-- Publishes an event when the transaction commits. The event is in the same format as that of the
-- crate. A NULL as the event name means no name.
CREATE OR REPLACE FUNCTION {schema}.publish(topic text, event text, data text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $tower_sse$
DECLARE
    -- Some collations do not support the functions below.
    the_topic text COLLATE "C" := topic;
    name text COLLATE "C" := event;
    lines text COLLATE "C" := data;
    transaction xid8 := pg_current_xact_id();
    is_first boolean := current_setting('{pending}', true) IS DISTINCT FROM transaction::text;
BEGIN
    IF the_topic IS NULL OR lines IS NULL THEN
        RAISE EXCEPTION 'the topic and the data of an event must not be NULL' USING ERRCODE = 'null_value_not_allowed';
    ELSIF starts_with(the_topic, 'tower-sse/') THEN
        RAISE EXCEPTION 'the topic % is reserved for the hub; choose another topic', the_topic
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF octet_length(the_topic) + octet_length(coalesce(name, '')) + octet_length(lines) > {max_bytes} THEN
        RAISE EXCEPTION 'the event is too large: topic, name and data have at most {max_bytes} bytes together'
            USING ERRCODE = 'program_limit_exceeded', HINT = 'Publish a link to large data instead.';
    ELSIF name IN ('gap', 'hub-cursor') THEN
        RAISE EXCEPTION 'the event name % is reserved for the events of a hub; choose another name', name
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF name = '' THEN
        RAISE EXCEPTION 'the event name is empty; use NULL for an event without a name'
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF name LIKE E'%\n%' OR name LIKE E'%\r%' THEN
        RAISE EXCEPTION 'the event name % contains a line break', quote_literal(name)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- One trigger moves all events of the transaction. A rollback to an earlier savepoint also
    -- restores the setting. After SET CONSTRAINTS, the trigger runs during the INSERT.
    IF is_first THEN
        PERFORM set_config('{pending}', transaction::text, true);
    END IF;
    INSERT INTO {schema}.inbox (transaction, is_first, topic, event) VALUES (
        transaction, is_first, convert_to(the_topic, 'UTF8'),
        convert_to(
            coalesce('event: ' || name || E'\n', '') || 'data: '
            || replace(replace(replace(lines, E'\r\n', E'\n'), E'\r', E'\n'), E'\n', E'\ndata: ') || E'\n\n',
            'UTF8'
        )
    );
END
$tower_sse$;

-- Runs at the end of the transaction, and moves its events to the log.
CREATE OR REPLACE FUNCTION {schema}.move_to_log() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_sort = off SET enable_bitmapscan = off SET jit = off AS $tower_sse$
DECLARE
    first bigint;
    count bigint;
BEGIN
    -- A sequential scan would read rows of other transactions, with which this one would then
    -- conflict if both are serializable. So the settings above exclude it.
    --
    -- A deferred trigger of the application may publish after this one.
    PERFORM set_config('{pending}', '', true);
    PERFORM pg_advisory_xact_lock({lock});
    IF NOT EXISTS (SELECT FROM {schema}.log WHERE log.identity = {schema}.identity()) THEN
        PERFORM {schema}.new_epoch();
    END IF;
    PERFORM {schema}.pass_newest();
    WITH moved AS (
        INSERT INTO {schema}.records
            SELECT nextval('{schema}.positions'), 'e', mine.topic, mine.event, clock_timestamp() FROM (
                SELECT inbox.topic, inbox.event FROM {schema}.inbox
                WHERE inbox.transaction = pg_current_xact_id() ORDER BY inbox.n
            ) AS mine
            RETURNING records.position
    ) SELECT min(moved.position), count(*) INTO first, count FROM moved;
    DELETE FROM {schema}.inbox WHERE inbox.transaction = pg_current_xact_id();
    -- At a higher isolation level, the transaction may not see the record before its first one.
    IF count <= {max_notified} AND current_setting('transaction_isolation') = 'read committed' THEN
        PERFORM {schema}.notify_of(first);
    ELSE
        PERFORM {schema}.notify();
    END IF;
    RETURN NULL;
END
$tower_sse$;
-- Creates the triggers that are missing. `session_replication_role = replica` does not disable
-- them.
--
-- Each of these statements locks its table. An open transaction that has published would prevent
-- this, and at its commit it waits for the lock of the log, which this script holds. So the
-- statements do not run if the trigger exists. A version that changes a trigger renames it, and
-- drops the trigger with the earlier name if this trigger exists.
DO $tower_sse$
DECLARE
    table_name text;
    name text;
    definition text;
BEGIN
    FOR table_name, name, definition IN VALUES
        ('{schema}.log', 'choose_epoch', 'CREATE TRIGGER choose_epoch BEFORE INSERT ON {schema}.log
            FOR EACH ROW EXECUTE FUNCTION {schema}.choose_epoch()'),
        ('{schema}.records', 'note_deleted', 'CREATE TRIGGER note_deleted AFTER DELETE ON {schema}.records
            REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION {schema}.note_deleted()'),
        ('{schema}.records', 'note_truncated', 'CREATE TRIGGER note_truncated BEFORE TRUNCATE ON {schema}.records
            FOR EACH STATEMENT EXECUTE FUNCTION {schema}.note_truncated()'),
        ('{schema}.inbox', 'move_to_log', 'CREATE CONSTRAINT TRIGGER move_to_log AFTER INSERT ON {schema}.inbox
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.is_first) EXECUTE FUNCTION {schema}.move_to_log()')
    LOOP
        IF NOT EXISTS (
            SELECT FROM pg_trigger
            WHERE tgrelid = table_name::regclass AND tgname = name AND tgenabled = 'A' AND NOT tgisinternal
        ) THEN
            EXECUTE 'DROP TRIGGER IF EXISTS ' || name || ' ON ' || table_name;
            EXECUTE definition;
            EXECUTE 'ALTER TABLE ' || table_name || ' ENABLE ALWAYS TRIGGER ' || name;
        END IF;
    END LOOP;
END
$tower_sse$;

-- Each role with USAGE on the schema can publish. The schema may have functions of other programs,
-- whose permissions stay. Versions before 4 revoked these permissions, too. An update does not
-- grant them again, because another program may have revoked them on purpose.
REVOKE ALL ON FUNCTION
    {schema}.listen(),
    {schema}.identity(),
    {schema}.is_current(bigint, bigint, timestamptz),
    {schema}.pass_newest(),
    {schema}.notify_of(bigint),
    {schema}.notify(),
    {schema}.choose_epoch(),
    {schema}.new_epoch_after(bigint),
    {schema}.new_epoch(),
    {schema}.bounds(bigint, bigint, timestamptz),
    {schema}.append("char"[], bytea[], bytea[], bigint, bigint, bigint, bigint, bigint, bigint, timestamptz),
    {schema}.page(bigint, bytea[], bigint, bigint, bigint, bigint, bigint, timestamptz),
    {schema}.evict(bigint, double precision, bigint, bigint),
    {schema}.note_deleted(),
    {schema}.note_truncated(),
    {schema}.move_to_log()
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION {schema}.publish(text, text, text) TO PUBLIC;

-- Older versions lack some functions and a table. If another role runs this update, such as a
-- superuser, they belong to the owner of the other functions nevertheless. Otherwise this owner
-- could run code with the permissions of the superuser, because the functions use tables of the
-- owner. Each role that may call `new_epoch` needs the functions.
DO $tower_sse$
DECLARE
    owner regrole := (SELECT proowner FROM pg_proc WHERE oid = '{schema}.new_epoch()'::regprocedure);
    role regrole;
    name text;
BEGIN
    IF (SELECT relowner FROM pg_class WHERE oid = '{schema}.channel'::regclass) <> owner THEN
        EXECUTE 'ALTER TABLE {schema}.channel OWNER TO ' || owner;
    END IF;
    FOREACH name IN ARRAY ARRAY['new_epoch_after(bigint)', 'listen()', 'notify_of(bigint)'] LOOP
        IF (SELECT proowner FROM pg_proc WHERE oid = ('{schema}.' || name)::regprocedure) <> owner THEN
            EXECUTE 'ALTER FUNCTION {schema}.' || name || ' OWNER TO ' || owner;
        END IF;
        FOR role IN
            SELECT grantee FROM pg_proc, aclexplode(proacl)
            WHERE pg_proc.oid = '{schema}.new_epoch()'::regprocedure AND grantee <> 0
        LOOP
            EXECUTE 'GRANT EXECUTE ON FUNCTION {schema}.' || name || ' TO ' || role;
        END LOOP;
    END LOOP;
END
$tower_sse$;

DO $tower_sse$
BEGIN
    IF NOT EXISTS (SELECT FROM {schema}.log) THEN
        PERFORM {schema}.new_epoch();
    END IF;
END
$tower_sse$;
