/* A load generator for check-ins: one thread, epoll, OpenSSL; one client certificate a connection.
 *
 *   load keep-alive   connections that stay; each sends its next request when it has its answer,
 *                     or with --rate when it is its turn: so many a second, at random moments
 *   load handshake    a fresh TLS 1.3 connection for each request
 *   load resumed      the same, resumed with the ticket that the identity was given before
 *   load idle         connections of one request each, held until standard input ends
 *   load percentiles  no traffic: the percentiles of the numbers on standard input
 *
 * It speaks to 127.0.0.1 and to nobody else. Every answer is read to its end and its status
 * compared with the expected one. SIGTERM ends the measured time early. It prints JSON, one object
 * a line:
 *
 *   {"event": "measuring"}   the warm-up is over: the moment to read the servers' CPU time
 *   {"event": "measured"}    the measured time is over: the moment to read it again
 *   {"event": "holding"}     (idle) all connections are open and have had their answer
 *   {"event": "result", ...}
 *
 * So that all servers do the same work, the client offers one key exchange (X25519) and one cipher
 * (TLS_AES_128_GCM_SHA256). It does not judge the server's certificate: that costs only itself.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <math.h>
#include <netinet/in.h>
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
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_HEAD = 16384 };        /* an answer's head; what a server sends is far below */
enum { MAX_CONNECTIONS = 20000 }; /* below the ephemeral ports of one address pair */
enum { OPENING_AT_ONCE = 32 };    /* handshakes under way while standing connections are opened */
enum { EVENTS = 256 };            /* taken from the kernel in one call */
enum { TICK_MS = 50 };            /* how often deadlines are looked at */

static const double TIMEOUT_S = 10.0;  /* for one request with its connection */
static const double BACK_OFF_S = 0.05; /* after an error, so that a dead server is not hammered */

enum mode { KEEP_ALIVE, HANDSHAKE, RESUMED, IDLE };
static const char *const MODES[] = {"keep-alive", "handshake", "resumed", "idle"};

enum error { BAD_STATUS, CONNECT, TLS, CLOSED, TIMEOUT, PROTOCOL, ERROR_KINDS };
static const char *const ERRORS[] = {"status", "connect", "tls", "closed", "timeout", "protocol"};

enum state {
    WAITING,    /* no socket; opens at `not_before` */
    CONNECTING, /* TCP, then TLS */
    SENDING,
    READING,
    RESTING, /* open, and nothing to do */
    FINISHED /* no socket, and never again */
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
    size_t body_left;  /* bytes of the answer's body that are to come, once its head is read */
    bool head_read;
    bool wrong_status;
    bool last; /* the server closes after this answer */
    char buffer[MAX_HEAD];
};

struct options {
    enum mode mode;
    int port;
    const char *identities;
    int connections;
    double warmup_s;
    double seconds;
    long requests; /* 0: as many as fit in `seconds` */
    double rate;   /* of requests a second, in `keep-alive`; 0: as fast as they are answered */
    int expect;
    const char *method;
    const char *path;
    const char *host;
};

/* What was counted since the measuring began. */
static struct {
    long answered;
    long resumed;
    long reconnects;
    long errors[ERROR_KINDS];
    char first_error[200];
    uint32_t *latencies_us;
    size_t size, capacity;
} tally;

static struct options options = {
    .connections = 64,
    .warmup_s = 1.0,
    .seconds = 5.0,
    .expect = 204,
    .method = "POST",
    .path = "/api/client",
    .host = "localhost",
};
static struct identity *identities;
static size_t identity_count, next_identity;
static struct connection *connections;
static SSL_CTX *context;
static int epoll_fd;
static char request[1024];
static int request_length;
static long issued;        /* requests begun, for --requests */
static double due;         /* when the next request of a paced run begins */
static int turn_of;        /* the connection that is asked first to begin it */
static int opening;        /* connections that are not yet open */
static bool standing_open; /* standing connections, if any, have had their first answer */
static volatile sig_atomic_t stopped;

static void stop(int signal_number)
{
    (void)signal_number;
    stopped = 1;
}

static void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(2);
}

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static double cpu_s(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

static void say(const char *event)
{
    printf("{\"event\": \"%s\"}\n", event);
    fflush(stdout);
}

/* ------------------------------------------------------------------------------- percentiles */

static void remember_latency(double seconds)
{
    if (tally.size == tally.capacity) {
        tally.capacity = tally.capacity ? tally.capacity * 2 : 65536;
        tally.latencies_us = realloc(tally.latencies_us, tally.capacity * sizeof(uint32_t));
        if (tally.latencies_us == NULL)
            die("out of memory");
    }
    tally.latencies_us[tally.size++] = (uint32_t)(seconds * 1e6 + 0.5);
}

static int compare(const void *left, const void *right)
{
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

/* The nearest rank: the smallest value that `tenths_of_percent` of all values do not exceed. */
static uint32_t percentile(unsigned tenths_of_percent)
{
    if (tally.size == 0)
        return 0;
    size_t rank = (tally.size * tenths_of_percent + 999) / 1000;
    return tally.latencies_us[rank ? rank - 1 : 0];
}

static void print_percentiles(void)
{
    if (tally.size)
        qsort(tally.latencies_us, tally.size, sizeof(uint32_t), compare);
    printf("\"latency_us\": {\"p50\": %u, \"p90\": %u, \"p99\": %u, \"p99.9\": %u, \"max\": %u}",
           percentile(500), percentile(900), percentile(990), percentile(999), percentile(1000));
}

static int percentiles_of_stdin(void)
{
    double microseconds;
    while (scanf("%lf", &microseconds) == 1)
        remember_latency(microseconds * 1e-6);
    printf("{\"event\": \"result\", \"count\": %zu, ", tally.size);
    print_percentiles();
    puts("}");
    return 0;
}

/* --------------------------------------------------------------------------------- identities */

/* Each line of the file: the path of a certificate, a tab, the path of its key (PEM). */
static void read_identities(const char *path)
{
    FILE *list = fopen(path, "r");
    if (list == NULL)
        die("%s: %s", path, strerror(errno));
    char certificate_path[512], key_path[512];
    while (fscanf(list, "%511[^\t]\t%511[^\n]\n", certificate_path, key_path) == 2) {
        identities = realloc(identities, (identity_count + 1) * sizeof *identities);
        if (identities == NULL)
            die("out of memory");
        struct identity *identity = &identities[identity_count++];
        memset(identity, 0, sizeof *identity);
        FILE *file = fopen(certificate_path, "r");
        if (file == NULL || !(identity->certificate = PEM_read_X509(file, NULL, NULL, NULL)))
            die("%s: no certificate in PEM", certificate_path);
        fclose(file);
        file = fopen(key_path, "r");
        if (file == NULL || !(identity->key = PEM_read_PrivateKey(file, NULL, NULL, NULL)))
            die("%s: no private key in PEM", key_path);
        fclose(file);
    }
    fclose(list);
    if (identity_count == 0)
        die("%s: no line with the paths of a certificate and its key", path);
}

/* Tickets come after the handshake in TLS 1.3, while the answer is read. */
static int keep_session(SSL *ssl, SSL_SESSION *session)
{
    struct connection *connection = SSL_get_app_data(ssl);
    SSL_SESSION_free(connection->identity->session);
    connection->identity->session = session;
    return 1; /* ours now */
}

static int believe(X509_STORE_CTX *store, void *unused)
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
    SSL_CTX_set_cert_verify_callback(context, believe, NULL);
    SSL_CTX_set_read_ahead(context, 1); /* a record in one system call instead of two */
    if (options.mode == RESUMED) {
        SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
        SSL_CTX_sess_set_new_cb(context, keep_session);
    }
}

/* -------------------------------------------------------------------------------- connections */

static bool standing(void)
{
    return options.mode == KEEP_ALIVE || options.mode == IDLE;
}

static bool more_to_do(void)
{
    return options.requests == 0 || !standing_open || issued < options.requests;
}

/* Close the socket; `connection` may open a new one from `not_before` on. */
static void hang_up(struct connection *connection, double not_before)
{
    if (connection->state == CONNECTING)
        opening--;
    if (connection->ssl != NULL) {
        if (SSL_is_init_finished(connection->ssl))
            SSL_shutdown(connection->ssl); /* says close_notify; the answer to it is not awaited */
        ERR_clear_error();
        SSL_free(connection->ssl);
        connection->ssl = NULL;
    }
    if (connection->fd >= 0)
        close(connection->fd); /* leaves the epoll set by that */
    connection->fd = -1;
    connection->state = WAITING;
    connection->not_before = not_before;
}

static void fail(struct connection *connection, enum error kind, const char *what)
{
    tally.errors[kind]++;
    if (tally.first_error[0] == '\0') {
        snprintf(tally.first_error, sizeof tally.first_error, "%s: %s", ERRORS[kind], what);
        for (char *c = tally.first_error; *c; c++)
            if (*c == '"' || *c == '\\' || *c < ' ' || *c > '~')
                *c = '?';
    }
    hang_up(connection, now_s() + BACK_OFF_S);
    if (!more_to_do())
        connection->state = FINISHED;
}

static void fail_tls(struct connection *connection, int result)
{
    int kind = SSL_get_error(connection->ssl, result);
    int number = errno;
    unsigned long code = ERR_get_error();
    if (kind == SSL_ERROR_ZERO_RETURN ||
        (kind == SSL_ERROR_SSL && ERR_GET_REASON(code) == SSL_R_UNEXPECTED_EOF_WHILE_READING))
        fail(connection, CLOSED, "the server closed the connection");
    else if (kind == SSL_ERROR_SSL)
        fail(connection, TLS, ERR_reason_error_string(code) ? ERR_reason_error_string(code) : "?");
    else
        fail(connection, CLOSED, number ? strerror(number) : "end of file");
}

static bool wants_more(struct connection *connection, int result)
{
    int kind = SSL_get_error(connection->ssl, result);
    return kind == SSL_ERROR_WANT_READ || kind == SSL_ERROR_WANT_WRITE;
}

static void open_connection(struct connection *connection)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(options.port)};
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
        fail(connection, CONNECT, strerror(errno));
        return;
    }
    SSL *ssl = connection->ssl = SSL_new(context);
    if (ssl == NULL || !SSL_set_fd(ssl, connection->fd) ||
        !SSL_use_certificate(ssl, connection->identity->certificate) ||
        !SSL_use_PrivateKey(ssl, connection->identity->key) ||
        !SSL_set_tlsext_host_name(ssl, options.host))
        die("cannot prepare a TLS connection");
    SSL_set_app_data(ssl, connection);
    SSL_set_connect_state(ssl);
    if (options.mode == RESUMED && connection->identity->session != NULL) {
        /* A copy: OpenSSL takes a ticket that was used for used up (RFC 8446, C.4), but not every
         * server (Node.js) gives a resumed connection a new one. */
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

static bool send_request(struct connection *connection)
{
    int result = SSL_write(connection->ssl, request, request_length);
    if (result > 0) {
        connection->state = READING;
        connection->used = 0;
        connection->head_read = connection->wrong_status = connection->last = false;
        return true;
    }
    connection->state = SENDING;
    if (!wants_more(connection, result))
        fail_tls(connection, result);
    return false;
}

/* Begin the next request of an open connection, or leave it at rest. */
static void next_request(struct connection *connection, double now)
{
    if (standing_open && options.mode == KEEP_ALIVE && options.rate == 0 && more_to_do()) {
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
    if (connection->wrong_status) {
        char what[40];
        const char *status = connection->buffer + 9;
        snprintf(what, sizeof what, "the answer was %.*s", (int)strcspn(status, "\r"), status);
        fail(connection, BAD_STATUS, what);
        return;
    }
    tally.answered++;
    tally.resumed += SSL_session_reused(connection->ssl);
    remember_latency(now - connection->started);
    if (!standing() || connection->last) {
        if (standing())
            tally.reconnects++;
        hang_up(connection, now);
        if (more_to_do())
            open_connection(connection);
        else
            connection->state = FINISHED;
    } else {
        next_request(connection, now);
    }
}

/* Return the value of a header field in the head, NULL where there is none. */
static const char *field(const char *head, const char *name)
{
    size_t length = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line != NULL; line = strstr(line, "\r\n")) {
        line += 2;
        if (strncasecmp(line, name, length) == 0 && line[length] == ':')
            return line + length + 1 + strspn(line + length + 1, " \t");
    }
    return NULL;
}

/* Read the head in the buffer; return what is wrong with it, or NULL. */
static const char *read_head(struct connection *connection, char *end)
{
    end[2] = '\0'; /* after the last field's CRLF */
    char *head = connection->buffer;
    if (strncmp(head, "HTTP/1.1 ", 9) != 0)
        return "expected HTTP/1.1";
    int status = atoi(head + 9);
    const char *length = field(head, "Content-Length");
    const char *connection_field = field(head, "Connection");
    connection->last = connection_field && strncasecmp(connection_field, "close", 5) == 0;
    connection->wrong_status = status != options.expect;
    if (status == 204 || status == 304)
        connection->body_left = 0; /* RFC 9112, 6.3 */
    else if (length == NULL)
        return "expected Content-Length";
    else
        connection->body_left = strtoul(length, NULL, 10);
    size_t head_size = (size_t)(end + 4 - head), rest = connection->used - head_size;
    if (rest > connection->body_left)
        return "more than one answer to one request";
    connection->body_left -= rest;
    connection->head_read = true;
    return NULL;
}

static void read_answer(struct connection *connection)
{
    for (;;) {
        /* Of a body only the length matters: it may overwrite itself. */
        char scratch[4096];
        bool body = connection->head_read;
        char *into = body ? scratch : connection->buffer + connection->used;
        size_t room = body ? sizeof scratch : MAX_HEAD - 1 - connection->used;
        if (room == 0) {
            fail(connection, PROTOCOL, "a head without an end");
            return;
        }
        int result = SSL_read(connection->ssl, into, (int)room);
        if (result <= 0) {
            if (!wants_more(connection, result))
                fail_tls(connection, result);
            return;
        }
        if (connection->state == RESTING) {
            fail(connection, PROTOCOL, "an answer to no request");
            return;
        }
        if (body) {
            if ((size_t)result > connection->body_left) {
                fail(connection, PROTOCOL, "more than one answer to one request");
                return;
            }
            connection->body_left -= (size_t)result;
        } else {
            connection->used += (size_t)result;
            connection->buffer[connection->used] = '\0';
            char *end = strstr(connection->buffer, "\r\n\r\n");
            if (end == NULL)
                continue;
            const char *problem = read_head(connection, end);
            if (problem != NULL) {
                fail(connection, PROTOCOL, problem);
                return;
            }
        }
        if (connection->head_read && connection->body_left == 0) {
            answered(connection);
            return; /* whatever comes next is an event of its own */
        }
    }
}

/* Something happened on the socket: go on as far as it takes us. */
static void advance(struct connection *connection)
{
    if (connection->state == WAITING || connection->state == FINISHED)
        return; /* an event of the socket that was closed in this round */
    if (connection->state == CONNECTING) {
        int result = SSL_do_handshake(connection->ssl);
        if (result != 1) {
            if (!wants_more(connection, result)) {
                int problem = 0;
                socklen_t size = sizeof problem;
                getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &problem, &size);
                if (problem)
                    fail(connection, CONNECT, strerror(problem));
                else
                    fail_tls(connection, result);
            }
            return;
        }
        opening--;
        connection->state = SENDING;
    }
    if (connection->state == SENDING && !send_request(connection))
        return;
    if (connection->state == READING || connection->state == RESTING)
        read_answer(connection);
}

/* Begin what is due. Where no connection is at rest it waits, and its latency grows. */
static void begin_due(double now)
{
    for (int busy = 0; due <= now && busy < options.connections && more_to_do();) {
        struct connection *connection = &connections[turn_of];
        turn_of = (turn_of + 1) % options.connections;
        if (connection->state != RESTING) {
            busy++;
            continue;
        }
        busy = 0;
        issued++;
        connection->started = due;
        due -= log(1 - drand48()) / options.rate; /* of many who know nothing of each other */
        send_request(connection);
    }
}

static int wait_for_events(struct epoll_event *events)
{
    if (options.rate == 0 || !standing_open)
        return epoll_wait(epoll_fd, events, EVENTS, TICK_MS);
    double left = fmin(fmax(due - now_s(), 0), TICK_MS * 1e-3);
    if (left == 0) /* behind: what is due waits for a connection, and so for an answer */
        left = 1e-3;
    struct timespec wait = {.tv_sec = 0, .tv_nsec = (long)(left * 1e9)};
    return epoll_pwait2(epoll_fd, events, EVENTS, &wait, NULL);
}

/* Open what waits, give up what takes too long. */
static void look_at_deadlines(double now)
{
    int at_once = standing() && !standing_open ? OPENING_AT_ONCE : MAX_CONNECTIONS;
    for (int i = 0; i < options.connections; i++) {
        struct connection *connection = &connections[i];
        switch (connection->state) {
        case WAITING:
            if (now >= connection->not_before && opening < at_once && more_to_do())
                open_connection(connection);
            break;
        case CONNECTING:
        case SENDING:
        case READING:
            if (now - connection->started > TIMEOUT_S)
                fail(connection, TIMEOUT, "no answer in time");
            break;
        default: break;
        }
    }
}

/* ----------------------------------------------------------------------------------- the run */

static int count(enum state state)
{
    int found = 0;
    for (int i = 0; i < options.connections; i++)
        found += connections[i].state == state;
    return found;
}

static long errors(void)
{
    long sum = 0;
    for (int kind = 0; kind < ERROR_KINDS; kind++)
        sum += tally.errors[kind];
    return sum;
}

static void forget_tally(void)
{
    tally.answered = tally.resumed = tally.reconnects = 0;
    tally.size = 0;
}

/* One round of the loop. With `watch_stdin` it returns false once standard input has ended. */
static bool turn(bool watch_stdin)
{
    struct epoll_event events[EVENTS];
    double now = now_s();
    static double looked;
    if (!standing_open || now - looked > TICK_MS * 1e-3) {
        looked = now;
        look_at_deadlines(now);
    }
    if (options.rate > 0 && standing_open)
        begin_due(now);
    int ready = wait_for_events(events);
    if (ready < 0 && errno != EINTR)
        die("epoll_wait: %s", strerror(errno));
    bool open = true;
    for (int i = 0; i < ready; i++) {
        if (events[i].data.ptr != NULL) {
            advance(events[i].data.ptr);
        } else if (watch_stdin) {
            char ignored[256];
            open = read(STDIN_FILENO, ignored, sizeof ignored) > 0;
        }
    }
    return open;
}

static void print_result(double seconds, double cpu)
{
    printf("{\"event\": \"result\", \"mode\": \"%s\", \"connections\": %d, \"identities\": %zu, "
           "\"count\": %ld, \"errors\": %ld, \"seconds\": %.6f, \"rate\": %.1f, "
           "\"resumed\": %ld, \"reconnects\": %ld, \"cpu_s\": %.3f, ",
           MODES[options.mode], options.connections, identity_count, tally.answered, errors(),
           seconds, seconds > 0 ? (double)tally.answered / seconds : 0, tally.resumed,
           tally.reconnects, cpu);
    fputs("\"errors_by_kind\": {", stdout);
    for (int kind = 0; kind < ERROR_KINDS; kind++)
        printf("%s\"%s\": %ld", kind ? ", " : "", ERRORS[kind], tally.errors[kind]);
    printf("}, \"first_error\": \"%s\", ", tally.first_error);
    print_percentiles();
    puts("}");
    fflush(stdout);
}

/* Standing connections: open them all, a few at a time, with one request each. */
static void open_standing(void)
{
    double patience = now_s() + TIMEOUT_S + options.connections * 0.02;
    while (count(RESTING) < options.connections) {
        if (now_s() > patience)
            die("only %d of %d connections could be opened; first error: %s", count(RESTING),
                options.connections, tally.first_error[0] ? tally.first_error : "none");
        turn(false);
    }
}

static int hold(void)
{
    double begun = now_s(), cpu = cpu_s();
    open_standing();
    double seconds = now_s() - begun;
    cpu = cpu_s() - cpu;
    standing_open = true;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &event) < 0)
        die("standard input: expected a pipe or a terminal (%s)", strerror(errno));
    options.requests = issued = 1; /* nothing is opened any more, whatever is dropped */
    say("holding");
    while (turn(true))
        ;
    print_result(seconds, cpu);
    return errors() ? 1 : 0;
}

static int measure(void)
{
    if (options.mode == KEEP_ALIVE) {
        open_standing();
        forget_tally(); /* the errors, if any, stay */
    }
    standing_open = true;
    double now = now_s();
    due = now;
    if (options.mode == KEEP_ALIVE && options.rate == 0) {
        for (int i = 0; i < options.connections; i++)
            if (connections[i].state == RESTING)
                next_request(&connections[i], now);
    }
    long before = errors();
    if (options.requests == 0) {
        double warm = now + options.warmup_s;
        while (!stopped && now_s() < warm)
            turn(false);
        forget_tally();
    }
    say("measuring");
    double begun = now_s(), cpu = cpu_s();
    double end = begun + options.seconds;
    while (!stopped && now_s() < end &&
           (options.requests == 0 || tally.answered + errors() - before < options.requests))
        turn(false);
    double seconds = now_s() - begun;
    cpu = cpu_s() - cpu;
    say("measured");
    print_result(seconds, cpu);
    return errors() ? 1 : 0;
}

static double number(const char *text, double low, double high)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || value < low || value > high)
        die("expected a number from %g to %g, got '%s'", low, high, text);
    return value;
}

static void read_options(int argc, char **argv)
{
    static const struct option names[] = {
        {"port", required_argument, NULL, 'p'},
        {"identities", required_argument, NULL, 'i'},
        {"connections", required_argument, NULL, 'c'},
        {"warmup", required_argument, NULL, 'w'},
        {"seconds", required_argument, NULL, 's'},
        {"requests", required_argument, NULL, 'n'},
        {"rate", required_argument, NULL, 'r'},
        {"expect", required_argument, NULL, 'e'},
        {"method", required_argument, NULL, 'm'},
        {"path", required_argument, NULL, 'u'},
        {"host", required_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    int mode = 0, option;
    while (mode <= IDLE && strcmp(argv[1], MODES[mode]) != 0)
        mode++;
    if (mode > IDLE)
        die("expected keep-alive, handshake, resumed, idle or percentiles, got '%s'", argv[1]);
    options.mode = (enum mode)mode;
    while ((option = getopt_long(argc - 1, argv + 1, "", names, NULL)) != -1) {
        switch (option) {
        case 'p': options.port = (int)number(optarg, 1, 65535); break;
        case 'i': options.identities = optarg; break;
        case 'c': options.connections = (int)number(optarg, 1, MAX_CONNECTIONS); break;
        case 'w': options.warmup_s = number(optarg, 0, 60); break;
        case 's': options.seconds = number(optarg, 0.01, 600); break;
        case 'n': options.requests = (long)number(optarg, 1, 1e8); break;
        case 'r': options.rate = number(optarg, 0.1, 1e6); break;
        case 'e': options.expect = (int)number(optarg, 100, 599); break;
        case 'm': options.method = optarg; break;
        case 'u': options.path = optarg; break;
        case 'h': options.host = optarg; break;
        default: exit(2);
        }
    }
    if (optind < argc - 1)
        die("unexpected argument '%s'", argv[optind + 1]);
    if (options.rate > 0 && options.mode != KEEP_ALIVE)
        die("--rate goes with keep-alive");
    if (options.port == 0 || options.identities == NULL)
        die("--port and --identities are needed");
    request_length =
        snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\n\r\n",
                 options.method, options.path, options.host);
    if (request_length >= (int)sizeof request)
        die("--method, --path and --host are too long");
}

int main(int argc, char **argv)
{
    if (argc < 2)
        die("usage: load keep-alive|handshake|resumed|idle --port N --identities FILE "
            "[--connections N] [--warmup S] [--seconds S] [--requests N] [--rate N] "
            "[--expect STATUS] [--method M] [--path P] [--host NAME]; or: load percentiles");
    if (strcmp(argv[1], "percentiles") == 0)
        return percentiles_of_stdin();
    read_options(argc, argv);
    signal(SIGPIPE, SIG_IGN); /* a server that hangs up is an error of one connection */
    struct sigaction stopping = {.sa_handler = stop};
    sigaction(SIGTERM, &stopping, NULL);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    read_identities(options.identities);
    make_context();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0)
        die("epoll_create1: %s", strerror(errno));
    connections = calloc((size_t)options.connections, sizeof *connections);
    if (connections == NULL)
        die("out of memory");
    for (int i = 0; i < options.connections; i++) {
        connections[i].fd = -1;
        connections[i].identity = &identities[(size_t)i % identity_count];
    }
    return options.mode == IDLE ? hold() : measure();
}
