/* A load generator for check-ins: one thread, epoll, OpenSSL; one client certificate a connection.
 *
 *   load MODE PORT IDENTITIES CONNECTIONS WARMUP_S SECONDS REQUESTS RATE
 *
 *   keep-alive   connections that stay; each sends its next request when it has its answer, or with
 *                a RATE when it is its turn: so many a second, at random moments
 *   handshake    a fresh TLS 1.3 connection for each request
 *   resumed      the same, resumed with the ticket that the identity was given before
 *   idle         connections of one request each, held until standard input ends
 *
 * REQUESTS and RATE are 0 for "as many as fit in SECONDS" and "as fast as they are answered".
 * benchmarks/load.py is its only caller. It connects to 127.0.0.1 and to no other address. An answer
 * that is not 204 is an error, and closes its connection. SIGTERM ends the measured time early. It
 * prints JSON, one object a line:
 *
 *   {"event": "measuring"}   the warm-up is over: the moment to read the servers' CPU time
 *   {"event": "measured"}    the measured time is over: the moment to read it again
 *   {"event": "holding"}     (idle) all connections are open and have had their answer
 *   {"event": "result", ...}
 *   {"event": "failed", "why": "..."}   exit status 2
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
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { MAX_HEAD = 4096 };         /* an answer; what a server sends is far below */
enum { MAX_CONNECTIONS = 20000 }; /* below the ephemeral ports of one address pair */
enum { OPENING_AT_ONCE = 32 };    /* handshakes under way while standing connections are opened */
enum { EVENTS = 256 };            /* taken from the kernel in one call */
enum { TICK_MS = 50 };            /* how often deadlines are checked */

static const double TIMEOUT_S = 10.0;  /* for one request with its connection */
static const double BACK_OFF_S = 0.05; /* after an error, so that a dead server is not hammered */
static const char REQUEST[] =
    "POST /api/client HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";

enum mode { KEEP_ALIVE, HANDSHAKE, RESUMED, IDLE };
static const char *const MODES[] = {"keep-alive", "handshake", "resumed", "idle"};

enum state {
    WAITING,    /* no socket; opens at `not_before`, if there is more to do */
    CONNECTING, /* TCP, then TLS */
    READING,
    RESTING /* open, and nothing to do */
};

struct identity {
    X509 *certificate;
    EVP_PKEY *key;
    SSL_SESSION *session; /* the newest ticket, in `resumed` */
};

struct connection {
    enum state state;
    int fd;
    SSL *ssl;
    struct identity *identity;
    double started;    /* of the request: what its latency counts from */
    double not_before; /* when a WAITING one may open */
    size_t used;       /* bytes of `buffer` */
    char buffer[MAX_HEAD];
};

static enum mode mode;
static int port, connection_count;
static double warmup_s, seconds, rate;
static long requests;

/* What was counted since the measuring began; errors since the start. */
static long resumed, errors;
static char first_error[200];
static uint32_t *latencies_us;
static size_t answered_count, capacity;

static struct identity *identities;
static size_t identity_count, next_identity;
static struct connection *connections;
static SSL_CTX *context;
static int epoll_fd;
static long issued;        /* requests begun, compared with `requests` */
static double due;         /* when the next request of a paced run begins */
static int opening;        /* connections that are not yet open */
static bool standing_open; /* standing connections, if any, have had their first answer */
static volatile sig_atomic_t stopped;

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

static void make_printable(char *text)
{
    for (char *c = text; *c; c++)
        if (*c == '"' || *c == '\\' || *c < ' ' || *c > '~')
            *c = '?';
}

static void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

static void die(const char *format, ...)
{
    char why[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    make_printable(why);
    printf("{\"event\": \"failed\", \"why\": \"load: %s\"}\n", why);
    exit(2);
}

static void *allocated(void *memory)
{
    if (memory == NULL)
        die("out of memory");
    return memory;
}

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static double cpu_s(void)
{
    struct timespec used;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return (double)used.tv_sec + (double)used.tv_nsec * 1e-9;
}

/* --------------------------------------------------------------------------------- identities */

static FILE *opened(const char *path)
{
    FILE *file = fopen(path, "r");
    if (file == NULL)
        die("%s: %s", path, strerror(errno));
    return file;
}

/* Each line of the file: the path of a PEM file with a certificate and its key. */
static void read_identities(const char *list_path)
{
    FILE *list = opened(list_path);
    char path[512];
    while (fscanf(list, "%511[^\n]\n", path) == 1) {
        identities = allocated(realloc(identities, (identity_count + 1) * sizeof *identities));
        struct identity *identity = &identities[identity_count++];
        FILE *file = opened(path);
        identity->certificate = PEM_read_X509(file, NULL, NULL, NULL);
        identity->key = PEM_read_PrivateKey(file, NULL, NULL, NULL);
        identity->session = NULL;
        if (identity->certificate == NULL || identity->key == NULL)
            die("%s: no certificate and private key in PEM", path);
        fclose(file);
    }
    fclose(list);
    if (identity_count == 0)
        die("%s: no line with the path of a certificate and its key", list_path);
}

/* Tickets come after the handshake in TLS 1.3, while the answer is read. */
static int keep_session(SSL *ssl, SSL_SESSION *session)
{
    struct connection *connection = SSL_get_app_data(ssl);
    SSL_SESSION_free(connection->identity->session);
    connection->identity->session = session;
    return 1; /* ours now */
}

static int accept_any(X509_STORE_CTX *store, void *unused)
{
    (void)store;
    (void)unused;
    return 1;
}

static void make_context(void)
{
    context = SSL_CTX_new(TLS_client_method());
    if (context == NULL || !SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) ||
        !SSL_CTX_set1_groups_list(context, "X25519") ||
        !SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256"))
        die("OpenSSL has no TLS 1.3 with X25519 and AES-128-GCM");
    SSL_CTX_set_cert_verify_callback(context, accept_any, NULL);
    SSL_CTX_set_read_ahead(context, 1); /* a record in one system call instead of two */
    if (mode == RESUMED) {
        SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
        SSL_CTX_sess_set_new_cb(context, keep_session);
    }
}

/* -------------------------------------------------------------------------------- connections */

static bool standing(void)
{
    return mode == KEEP_ALIVE || mode == IDLE;
}

static bool more_to_do(void)
{
    return requests == 0 || !standing_open || issued < requests;
}

/* Close the socket; `connection` may open a new one from `not_before` on. */
static void hang_up(struct connection *connection, double not_before)
{
    if (connection->state == CONNECTING)
        opening--;
    if (connection->ssl != NULL) {
        if (SSL_is_init_finished(connection->ssl))
            SSL_shutdown(connection->ssl); /* sends close_notify, and does not await the peer's */
        ERR_clear_error();
        SSL_free(connection->ssl);
        connection->ssl = NULL;
    }
    close(connection->fd); /* leaves the epoll set by that */
    connection->state = WAITING;
    connection->not_before = not_before;
}

static void fail(struct connection *connection, const char *kind, const char *what)
{
    errors++;
    if (first_error[0] == '\0') {
        snprintf(first_error, sizeof first_error, "%s: %s", kind, what);
        make_printable(first_error);
    }
    hang_up(connection, now_s() + BACK_OFF_S);
}

/* After a TLS call that gave `result`: wait for more, or fail. */
static void wait_or_fail(struct connection *connection, int result)
{
    int kind = SSL_get_error(connection->ssl, result), number = errno, refused = 0;
    if (kind == SSL_ERROR_WANT_READ || kind == SSL_ERROR_WANT_WRITE)
        return;
    unsigned long code = ERR_get_error();
    socklen_t size = sizeof refused;
    if (connection->state == CONNECTING)
        getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &refused, &size);
    if (refused)
        fail(connection, "connect", strerror(refused));
    else if (kind == SSL_ERROR_ZERO_RETURN ||
             (kind == SSL_ERROR_SSL && ERR_GET_REASON(code) == SSL_R_UNEXPECTED_EOF_WHILE_READING))
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
    if (!standing())
        connection->identity = &identities[next_identity++ % identity_count];
    if (standing_open)
        issued++;
    connection->state = CONNECTING;
    opening++;
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (connection->fd < 0)
        die("socket: %s", strerror(errno));
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
        die("cannot prepare a TLS connection");
    SSL_set_app_data(ssl, connection);
    SSL_set_connect_state(ssl);
    if (connection->identity->session != NULL) {
        /* A copy: OpenSSL discards a ticket that was used (RFC 8446, C.4), but not every server
         * (Node.js) gives a resumed connection a new one. */
        SSL_SESSION *copy = SSL_SESSION_dup(connection->identity->session);
        if (copy == NULL || !SSL_set_session(ssl, copy))
            die("cannot offer a ticket");
        SSL_SESSION_free(copy);
    }
    /* Edge-triggered, both ways, once: no system call to change what is waited for. */
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = connection};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, connection->fd, &event) < 0)
        die("epoll_ctl: %s", strerror(errno));
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
    if (standing_open && mode == KEEP_ALIVE && rate == 0 && more_to_do()) {
        issued++;
        connection->started = now;
        send_request(connection);
    } else {
        connection->state = RESTING;
    }
}

static void answered(struct connection *connection)
{
    double now = now_s();
    resumed += SSL_session_reused(connection->ssl);
    if (answered_count == capacity) {
        capacity = capacity ? capacity * 2 : 65536;
        latencies_us = allocated(realloc(latencies_us, capacity * sizeof *latencies_us));
    }
    latencies_us[answered_count++] = (uint32_t)((now - connection->started) * 1e6 + 0.5);
    if (standing()) {
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

/* Read until nothing is left (edge-triggered), or a whole answer is there. */
static void read_answer(struct connection *connection)
{
    for (;;) {
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

/* Something happened on the socket. */
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
    /* Not of a socket that was closed in this round. */
    if (connection->state == READING || connection->state == RESTING)
        read_answer(connection);
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

static int wait_for_events(struct epoll_event *events)
{
    if (rate == 0 || !standing_open)
        return epoll_wait(epoll_fd, events, EVENTS, TICK_MS);
    double left = fmin(fmax(due - now_s(), 0), TICK_MS * 1e-3);
    if (left == 0) /* behind: what is due waits for a connection, and so for an answer */
        left = 1e-3;
    struct timespec wait = {.tv_sec = 0, .tv_nsec = (long)(left * 1e9)};
    return epoll_pwait2(epoll_fd, events, EVENTS, &wait, NULL);
}

/* Open what waits, give up what takes too long. */
static void check_deadlines(double now)
{
    int at_once = standing() && !standing_open ? OPENING_AT_ONCE : MAX_CONNECTIONS;
    for (int i = 0; i < connection_count; i++) {
        struct connection *connection = &connections[i];
        if (connection->state == WAITING) {
            if (now >= connection->not_before && opening < at_once && more_to_do())
                open_connection(connection);
        } else if (connection->state == CONNECTING || connection->state == READING) {
            if (now - connection->started > TIMEOUT_S)
                fail(connection, "timeout", "no answer in time");
        }
    }
}

/* ----------------------------------------------------------------------------------- the run */

/* One round of the loop. Returns false once standard input, if it is watched, has ended. */
static bool turn(void)
{
    static double checked;
    struct epoll_event events[EVENTS];
    double now = now_s();
    if (!standing_open || now - checked > TICK_MS * 1e-3) {
        checked = now;
        check_deadlines(now);
    }
    if (rate > 0 && standing_open)
        begin_due(now);
    int ready = wait_for_events(events);
    if (ready < 0 && errno != EINTR)
        die("epoll_wait: %s", strerror(errno));
    for (int i = 0; i < ready; i++) {
        char ignored[256];
        if (events[i].data.ptr != NULL)
            advance(events[i].data.ptr);
        else if (read(STDIN_FILENO, ignored, sizeof ignored) <= 0)
            return false;
    }
    return true;
}

static int print_result(double elapsed_s, double used_s)
{
    printf("{\"event\": \"result\", \"mode\": \"%s\", \"count\": %zu, \"errors\": %ld, "
           "\"seconds\": %.6f, \"rate\": %.1f, \"resumed\": %ld, \"cpu_s\": %.3f, "
           "\"first_error\": \"%s\", \"latencies_us\": [",
           MODES[mode], answered_count, errors, elapsed_s,
           elapsed_s > 0 ? (double)answered_count / elapsed_s : 0, resumed, used_s, first_error);
    for (size_t i = 0; i < answered_count; i++)
        printf(i ? ",%u" : "%u", latencies_us[i]);
    puts("]}");
    return errors ? 1 : 0;
}

/* Standing connections: open them all, a few at a time, with one request each. */
static void open_standing(void)
{
    double patience = now_s() + TIMEOUT_S + connection_count * 0.02;
    for (;;) {
        int at_rest = 0;
        for (int i = 0; i < connection_count; i++)
            at_rest += connections[i].state == RESTING;
        if (at_rest == connection_count)
            break;
        if (now_s() > patience)
            die("only %d of %d connections could be opened; first error: %s", at_rest,
                connection_count, first_error[0] ? first_error : "none");
        turn();
    }
    standing_open = true;
}

static int hold(void)
{
    double begun = now_s(), cpu = cpu_s();
    open_standing();
    double elapsed_s = now_s() - begun, used_s = cpu_s() - cpu;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &event) < 0)
        die("standard input: expected a pipe or a terminal (%s)", strerror(errno));
    requests = issued = 1; /* nothing is opened any more, whatever is dropped */
    say("holding");
    while (turn())
        ;
    return print_result(elapsed_s, used_s);
}

static int measure(void)
{
    if (mode == KEEP_ALIVE)
        open_standing();
    standing_open = true;
    answered_count = 0, resumed = 0;
    double now = due = now_s();
    for (int i = 0; i < connection_count; i++)
        if (connections[i].state == RESTING)
            next_request(&connections[i], now);
    long before = errors;
    if (requests == 0) {
        while (!stopped && now_s() < now + warmup_s)
            turn();
        answered_count = 0, resumed = 0;
    }
    say("measuring");
    double begun = now_s(), cpu = cpu_s();
    while (!stopped && now_s() < begun + seconds &&
           (requests == 0 || (long)answered_count + errors - before < requests))
        turn();
    double elapsed_s = now_s() - begun, used_s = cpu_s() - cpu;
    say("measured");
    return print_result(elapsed_s, used_s);
}

static double number(const char *text, double low, double high)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || value < low || value > high)
        die("expected a number from %g to %g, got '%s'", low, high, text);
    return value;
}

int main(int argc, char **argv)
{
    if (argc != 9)
        die("expected MODE PORT IDENTITIES CONNECTIONS WARMUP_S SECONDS REQUESTS RATE");
    while (strcmp(argv[1], MODES[mode]) != 0)
        if (mode++ == IDLE)
            die("expected keep-alive, handshake, resumed or idle, got '%s'", argv[1]);
    port = (int)number(argv[2], 1, 65535);
    connection_count = (int)number(argv[4], 1, MAX_CONNECTIONS);
    warmup_s = number(argv[5], 0, 60);
    seconds = number(argv[6], 0.01, 600);
    requests = (long)number(argv[7], 0, 1e8);
    rate = number(argv[8], 0, 1e6);
    if (rate > 0 && mode != KEEP_ALIVE)
        die("a rate goes with keep-alive");
    signal(SIGPIPE, SIG_IGN); /* a server that hangs up is an error of one connection */
    signal(SIGTERM, stop);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    read_identities(argv[3]);
    make_context();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0)
        die("epoll_create1: %s", strerror(errno));
    connections = allocated(calloc((size_t)connection_count, sizeof *connections));
    for (int i = 0; i < connection_count; i++)
        connections[i].identity = &identities[(size_t)i % identity_count];
    return mode == IDLE ? hold() : measure();
}
