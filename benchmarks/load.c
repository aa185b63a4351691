/* A load generator for check-ins: one thread, epoll, OpenSSL; one client certificate a connection.
 *
 *   load MODE PORT IDENTITIES CONNECTIONS WARMUP_S SECONDS REQUESTS RATE
 *
 *   keep-alive   standing connections; each sends its next request when it has its answer, or with
 *                a RATE when it is its turn: RATE requests a second, at random moments
 *   handshake    a fresh TLS 1.3 connection for each request
 *   resumed      the same, resumed with the ticket that the identity was given before
 *   idle         connections of one request each, held until standard input ends
 *
 * REQUESTS and RATE are 0 for "as many as fit in SECONDS" and "as fast as they are answered".
 * benchmarks/load.py is its only caller, and checks the arguments. It connects to 127.0.0.1 only.
 * An answer that is not 204 is an error and closes its connection. SIGTERM ends the measured time.
 * It prints JSON, one object a line: {"event": "measuring"} after the warm-up, "measured" after the
 * measured time, "holding" once all connections of `idle` have their answer, then "result"; or
 * {"event": "failed", "why": "..."} with exit status 2.
 *
 * The client offers one key exchange (X25519) and one cipher (TLS_AES_128_GCM_SHA256), so that all
 * servers do the same work. It does not verify the server's certificate: that costs only itself.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_HEAD = 4096,      /* an answer; what a server sends is far below */
    OPENING_AT_ONCE = 32, /* handshakes under way while standing connections are opened */
    EVENTS = 256,         /* taken from the kernel in one call */
};
static const double TICK_S = 0.05;     /* how often deadlines are checked */
static const double TIMEOUT_S = 10.0;  /* for one request with its connection */
static const double BACK_OFF_S = 0.05; /* after an error: do not hammer a dead server */
static const char REQUEST[] =
    "POST /api/client HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";

enum mode { KEEP_ALIVE, HANDSHAKE, RESUMED, IDLE };
static const char *const MODES[] = {"keep-alive", "handshake", "resumed", "idle"};

struct identity {
    X509 *certificate;
    EVP_PKEY *key;
    SSL_SESSION *session; /* the newest ticket, in `resumed` */
};

struct connection {
    /* WAITING has no socket; CONNECTING is TCP, then TLS; RESTING is open, with nothing to do. */
    enum { WAITING, CONNECTING, READING, RESTING } state;
    int fd;
    SSL *ssl;
    struct identity *identity;
    double started;    /* of the request: what its latency counts from */
    double not_before; /* when a WAITING one may open */
    size_t used;       /* bytes of `buffer` */
    char buffer[MAX_HEAD];
};

static enum mode mode;
static bool standing; /* keep-alive, idle */
static int port, connection_count;
static double warmup_s, seconds, rate;
static long requests;

/* Since the measuring began; errors since the start. */
static long answered_count, resumed, errors;
static char first_error[200];
static unsigned *latencies_us;
static long capacity;

static struct identity *identities;
static size_t identity_count, next_identity;
static struct connection *connections;
static SSL_CTX *context;
static int epoll_fd;
static long issued;         /* requests begun, compared with `requests` */
static double due;          /* when the next request of a paced run begins */
static int opening;         /* connections that are not yet open */
static bool all_open;       /* standing connections, if any, have had their first answer */
static volatile sig_atomic_t stopped;

#define DIE(...)                                                                                   \
    (printf("{\"event\": \"failed\", \"why\": \"load: "), printf(__VA_ARGS__), puts("\"}"), exit(2))

static void stop(int signal_number)
{
    (void)signal_number;
    stopped = 1;
}

static void say(const char *event)
{
    printf("{\"event\": \"%s\"}\n", event);
    fflush(stdout);
}

static void *array(void *memory, size_t count, size_t size)
{
    memory = reallocarray(memory, count, size);
    if (memory == NULL)
        DIE("out of memory");
    return memory;
}

static double clock_s(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static double now_s(void) { return clock_s(CLOCK_MONOTONIC); }
static double cpu_s(void) { return clock_s(CLOCK_PROCESS_CPUTIME_ID); }

/* The file has a certificate and its key in PEM for each identity, one after the other. */
static void read_identities(const char *path)
{
    FILE *file = fopen(path, "r");
    if (file == NULL)
        DIE("%s: %s", path, strerror(errno));
    for (X509 *certificate; (certificate = PEM_read_X509(file, NULL, NULL, NULL)) != NULL;) {
        EVP_PKEY *key = PEM_read_PrivateKey(file, NULL, NULL, NULL);
        if (key == NULL)
            DIE("%s: a certificate without its key", path);
        identities = array(identities, identity_count + 1, sizeof *identities);
        identities[identity_count++] = (struct identity){certificate, key, NULL};
    }
    fclose(file);
    ERR_clear_error();
    if (identity_count == 0)
        DIE("%s: no certificate", path);
}

/* Tickets come after the handshake in TLS 1.3, while the answer is read. */
static int keep_session(SSL *ssl, SSL_SESSION *session)
{
    struct connection *connection = SSL_get_app_data(ssl);
    SSL_SESSION_free(connection->identity->session);
    connection->identity->session = session;
    return 1; /* ours now */
}

static void make_context(void)
{
    context = SSL_CTX_new(TLS_client_method());
    if (context == NULL || !SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) ||
        !SSL_CTX_set1_groups_list(context, "X25519") ||
        !SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256"))
        DIE("OpenSSL has no TLS 1.3 with X25519 and AES-128-GCM");
    SSL_CTX_set_verify(context, SSL_VERIFY_NONE, NULL);
    SSL_CTX_set_read_ahead(context, 1); /* a record in one system call instead of two */
    if (mode == RESUMED) {
        SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
        SSL_CTX_sess_set_new_cb(context, keep_session);
    }
}

/* -------------------------------------------------------------------------------- connections */

static bool more_to_do(void) { return requests == 0 || !all_open || issued < requests; }

/* Close the socket; `connection` may open a new one from `not_before` on. */
static void hang_up(struct connection *connection, double not_before)
{
    opening -= connection->state == CONNECTING;
    if (connection->ssl != NULL && SSL_is_init_finished(connection->ssl))
        SSL_shutdown(connection->ssl); /* sends close_notify, and does not await the peer's */
    ERR_clear_error();
    SSL_free(connection->ssl);
    connection->ssl = NULL;
    close(connection->fd); /* leaves the epoll set by that */
    connection->state = WAITING;
    connection->not_before = not_before;
}

static void fail(struct connection *connection, const char *kind, const char *what)
{
    errors++;
    if (first_error[0] == '\0') {
        snprintf(first_error, sizeof first_error, "%s: %s", kind, what);
        for (char *c = first_error; *c; c++) /* it goes into JSON */
            if (*c == '"' || *c == '\\' || *c < ' ' || *c > '~')
                *c = '?';
    }
    hang_up(connection, now_s() + BACK_OFF_S);
}

/* After a TLS call that gave `result`: wait for more, or fail. */
static void wait_or_fail(struct connection *connection, int result)
{
    int kind = SSL_get_error(connection->ssl, result), number = errno;
    if (kind == SSL_ERROR_WANT_READ || kind == SSL_ERROR_WANT_WRITE)
        return;
    unsigned long code = ERR_get_error();
    if (kind == SSL_ERROR_ZERO_RETURN || ERR_GET_REASON(code) == SSL_R_UNEXPECTED_EOF_WHILE_READING)
        fail(connection, "closed", "the server closed the connection");
    else if (kind == SSL_ERROR_SSL)
        fail(connection, "tls", ERR_reason_error_string(code) ? ERR_reason_error_string(code) : "?");
    else
        fail(connection, "closed", number ? strerror(number) : "end of file");
}

static void open_connection(struct connection *connection)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connection->started = now_s();
    if (!standing)
        connection->identity = &identities[next_identity++ % identity_count];
    issued += all_open;
    connection->state = CONNECTING;
    opening++;
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int on = 1;
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(connection->fd, (struct sockaddr *)&address, sizeof address) < 0 &&
        errno != EINPROGRESS) {
        fail(connection, "connect", strerror(errno));
        return;
    }
    SSL *ssl = connection->ssl = SSL_new(context);
    if (ssl == NULL || !SSL_set_fd(ssl, connection->fd) ||
        !SSL_use_certificate(ssl, connection->identity->certificate) ||
        !SSL_use_PrivateKey(ssl, connection->identity->key) ||
        !SSL_set_tlsext_host_name(ssl, "localhost"))
        DIE("cannot prepare a TLS connection");
    SSL_set_app_data(ssl, connection);
    SSL_set_connect_state(ssl);
    if (connection->identity->session != NULL) {
        /* A copy: OpenSSL discards a ticket that was used (RFC 8446, C.4), but not every server
         * (Node.js) gives a resumed connection a new one. */
        SSL_SESSION *copy = SSL_SESSION_dup(connection->identity->session);
        if (copy == NULL || !SSL_set_session(ssl, copy))
            DIE("cannot offer a ticket");
        SSL_SESSION_free(copy);
    }
    /* Edge-triggered, both ways, once: no system call to change what is waited for. */
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = connection};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, connection->fd, &event) < 0)
        DIE("epoll_ctl: %s", strerror(errno));
}

static void send_request(struct connection *connection)
{
    connection->state = READING;
    connection->used = 0;
    int result = SSL_write(connection->ssl, REQUEST, sizeof REQUEST - 1);
    if (result <= 0) /* not for want of room: the socket's buffer is empty */
        wait_or_fail(connection, result);
}

/* Begin the next request of an open connection, or leave it at rest. */
static void next_request(struct connection *connection, double now)
{
    connection->state = RESTING;
    if (all_open && mode == KEEP_ALIVE && rate == 0 && more_to_do()) {
        issued++;
        connection->started = now;
        send_request(connection);
    }
}

static void answered(struct connection *connection)
{
    double now = now_s();
    resumed += SSL_session_reused(connection->ssl);
    if (answered_count == capacity)
        latencies_us = array(latencies_us, (size_t)(capacity += 1 << 16), sizeof *latencies_us);
    latencies_us[answered_count++] = (unsigned)((now - connection->started) * 1e6 + 0.5);
    if (standing) {
        next_request(connection, now);
    } else {
        hang_up(connection, now);
        if (more_to_do())
            open_connection(connection);
    }
}

/* Take a whole answer that is in the buffer: return false as long as more of it must come. */
static bool take_answer(struct connection *connection)
{
    char *answer = connection->buffer, *end = strstr(answer, "\r\n\r\n");
    if (end == NULL && connection->used < MAX_HEAD - 1)
        return false;
    if (end == NULL || strncmp(answer, "HTTP/1.1 ", 9) != 0) {
        fail(connection, "protocol", end ? "expected HTTP/1.1" : "a head without an end");
    } else if (strncmp(answer + 9, "204", 3) != 0) {
        char what[60];
        snprintf(what, sizeof what, "the answer was %.*s", (int)strcspn(answer + 9, "\r"), answer + 9);
        fail(connection, "status", what);
    } else if (end + 4 != answer + connection->used) {
        fail(connection, "protocol", "more than one answer to one request");
    } else {
        answered(connection);
    }
    return true;
}

/* Something happened on the socket: go on until nothing is left, or a whole answer is there. */
static void advance(struct connection *connection)
{
    if (connection->state == CONNECTING) {
        int result = SSL_do_handshake(connection->ssl);
        if (result != 1) {
            wait_or_fail(connection, result);
            return;
        }
        opening--;
        send_request(connection);
    }
    while (connection->state != WAITING) { /* it may have been closed in this round */
        size_t room = MAX_HEAD - 1 - connection->used;
        int result = SSL_read(connection->ssl, connection->buffer + connection->used, (int)room);
        if (result <= 0) {
            wait_or_fail(connection, result);
            return;
        }
        if (connection->state == RESTING) {
            fail(connection, "protocol", "an answer to no request");
            return;
        }
        connection->used += (size_t)result;
        connection->buffer[connection->used] = '\0';
        if (take_answer(connection))
            return; /* whatever comes next is an event of its own */
    }
}

/* Begin what is due. If no connection is at rest it waits, and its latency grows. */
static void begin_due(double now)
{
    static int turn_of; /* the connection that is asked first */
    for (int busy = 0; due <= now && busy < connection_count && more_to_do();) {
        struct connection *connection = &connections[turn_of];
        turn_of = (turn_of + 1) % connection_count;
        if (connection->state != RESTING) {
            busy++;
            continue;
        }
        busy = 0;
        issued++;
        connection->started = due;
        due -= log(1 - drand48()) / rate; /* as many independent clients */
        send_request(connection);
    }
}

/* Open what waits, give up what takes too long. */
static void check_deadlines(double now)
{
    int at_once = standing && !all_open ? OPENING_AT_ONCE : connection_count;
    for (struct connection *c = connections; c < connections + connection_count; c++) {
        if (c->state == WAITING && now >= c->not_before && opening < at_once && more_to_do())
            open_connection(c);
        else if ((c->state == CONNECTING || c->state == READING) && now - c->started > TIMEOUT_S)
            fail(c, "timeout", "no answer in time");
    }
}

/* One round of the loop. */
static void turn(void)
{
    static double checked;
    struct epoll_event events[EVENTS];
    double now = now_s(), wait_s = TICK_S;
    if (!all_open || now - checked > TICK_S) {
        checked = now;
        check_deadlines(now);
    }
    if (rate > 0 && all_open) {
        begin_due(now);
        wait_s = fmin(due - now_s(), TICK_S);
        if (wait_s <= 0) /* behind: what is due waits for a connection, and so for an answer */
            wait_s = 1e-3;
    }
    struct timespec wait = {.tv_nsec = (long)(wait_s * 1e9)};
    int ready = epoll_pwait2(epoll_fd, events, EVENTS, &wait, NULL);
    if (ready < 0 && errno != EINTR)
        DIE("epoll_pwait2: %s", strerror(errno));
    for (int i = 0; i < ready; i++)
        advance(events[i].data.ptr);
}

/* ----------------------------------------------------------------------------------- the run */

static int at_rest(void)
{
    int found = 0;
    for (int i = 0; i < connection_count; i++)
        found += connections[i].state == RESTING;
    return found;
}

/* Standing connections: open them all, a few at a time, with one request each. */
static void open_standing(void)
{
    double patience = now_s() + TIMEOUT_S + connection_count * 0.02;
    while (at_rest() < connection_count) {
        if (now_s() > patience)
            DIE("only %d of %d connections could be opened; first error: %s", at_rest(),
                connection_count, first_error[0] ? first_error : "none");
        turn();
    }
}

/* Hold them until standard input ends. A connection that the server closed meanwhile is an error. */
static void hold(void)
{
    char ignored[256];
    say("holding");
    while (read(STDIN_FILENO, ignored, sizeof ignored) > 0)
        ;
    requests = issued = 1; /* nothing is opened any more */
    all_open = true;
    turn();
}

static void run_for(double limit_s, long answers)
{
    double end = now_s() + limit_s;
    long before = answered_count + errors;
    while (!stopped && now_s() < end &&
           (answers == 0 || answered_count + errors - before < answers))
        turn();
}

int main(int argc, char **argv)
{
    if (argc != 9)
        DIE("expected MODE PORT IDENTITIES CONNECTIONS WARMUP_S SECONDS REQUESTS RATE");
    while (strcmp(argv[1], MODES[mode]) != 0)
        if (mode++ == IDLE)
            DIE("expected keep-alive, handshake, resumed or idle");
    standing = mode == KEEP_ALIVE || mode == IDLE;
    port = atoi(argv[2]);
    connection_count = atoi(argv[4]);
    warmup_s = atof(argv[5]);
    seconds = atof(argv[6]);
    requests = atol(argv[7]);
    rate = atof(argv[8]);
    signal(SIGPIPE, SIG_IGN); /* a server that hangs up is an error of one connection */
    signal(SIGTERM, stop);
    read_identities(argv[3]);
    make_context();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    connections = array(NULL, (size_t)connection_count, sizeof *connections);
    memset(connections, 0, (size_t)connection_count * sizeof *connections);
    for (int i = 0; i < connection_count; i++)
        connections[i].identity = &identities[(size_t)i % identity_count];

    double begun = now_s(), cpu = cpu_s();
    if (standing)
        open_standing();
    double elapsed_s = now_s() - begun, used_s = cpu_s() - cpu;
    if (mode == IDLE) {
        hold();
    } else {
        all_open = true;
        answered_count = resumed = 0;
        due = now_s();
        for (int i = 0; standing && i < connection_count; i++)
            if (connections[i].state == RESTING)
                next_request(&connections[i], due);
        if (requests == 0) {
            run_for(warmup_s, 0);
            answered_count = resumed = 0;
        }
        say("measuring");
        begun = now_s(), cpu = cpu_s();
        run_for(seconds, requests);
        elapsed_s = now_s() - begun, used_s = cpu_s() - cpu;
        say("measured");
    }
    printf("{\"event\": \"result\", \"mode\": \"%s\", \"count\": %ld, \"errors\": %ld, "
           "\"seconds\": %.6f, \"rate\": %.1f, \"resumed\": %ld, \"cpu_s\": %.3f, "
           "\"first_error\": \"%s\", \"latencies_us\": [",
           MODES[mode], answered_count, errors, elapsed_s,
           elapsed_s > 0 ? (double)answered_count / elapsed_s : 0, resumed, used_s, first_error);
    for (long i = 0; i < answered_count; i++)
        printf(i ? ",%u" : "%u", latencies_us[i]);
    puts("]}");
    return 0;
}
