// Load on connections that stay: streams of steps (NDJSON, WebSocket), or a session on each connection (HTTP).
//
//   live PORT PROTOCOL CONNECTIONS WINDOW SECONDS RATE STEPS UNIT NUMBER_AT OPENINGS FIRSTS MESSAGES ANSWER
//
// PROTOCOL is http, ndjson or ws. The three files hold one record of equal length for each connection: what it sends
// when it is open, what it sends next (ws: once the handshake is done), and one message, which is sent again and again;
// at NUMBER_AT of a message (-1: nowhere) stand 8 bytes for the number of its first step, of STEPS in it. UNIT is the
// length of one step in a binary answer, 0 if answers are text, where a step is a line (http: a reply is a message).
// NDJSON lines that are due at once go as one chunk, as they do from a client that reads a pipe.
//
// Every connection first sends one message and waits for its answer; the payload of the first connection's goes to the
// file ANSWER. Then "begin" is printed, and for SECONDS either every connection keeps WINDOW messages unanswered
// (RATE 0), or messages arrive as a Poisson process of RATE a second, on the connections in turn: latency then runs
// from the arrival, waiting for the connection's earlier messages included. In the end one line of JSON.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_BYTES = 2048, BUFFER_BYTES = 1 << 19, OPENING_AT_ONCE = 128, OPENING_SECONDS = 60, GRACE_SECONDS = 5 };
enum { NUMBER_BYTES = 8, PONG_BYTES = 6 + 125 };

typedef enum { HTTP, NDJSON, WS } Protocol;
typedef enum { CLOSED, OPENING, LIVE, BROKEN } State;
typedef enum { HEAD, BODY, CHUNK_SIZE, CHUNK, CHUNK_END, FRAME_HEAD, FRAME } Phase;

typedef struct {
    char *bytes;
    size_t length;  // of one record
} Records;

typedef struct {
    int fd;
    State state;
    Phase phase;
    int watches_writing, first_sent;
    char head[HEAD_BYTES];
    size_t head_length;
    int status;
    long left;  // bytes of body, chunk or frame still to come
    int opcode, final;
    char line[9];  // how the line began
    size_t line_length;
    char *rest;  // bytes that the socket did not take
    size_t rest_length, rest_sent;
    char ping[125], pong[PONG_BYTES];
    size_t ping_length, pong_length;
    double *sent_at;  // ring of WINDOW
    long due, sent, steps;  // messages that are to be sent, and that were; steps that were answered
    long counted, arrived;  // messages whose answers were timed; arrivals that were taken
} Connection;

static struct sockaddr_in address;
static Protocol protocol;
static int poller, connections, window, opened, opening, broken;
static long steps_each, unit, number_at, total_steps, errors;
static double seconds, rate, start, stop;
static Records openings, firsts, messages;
static Connection *connection;
static FILE *answer;
static double *arrivals;
static long arrival_count, arrived_count;
static float *latencies;
static size_t latency_count, latency_room;
static char scratch[BUFFER_BYTES], received[BUFFER_BYTES];

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void give_up(Connection *c, const char *why) {
    if (c->state == BROKEN) return;
    if (broken++ == 0) fprintf(stderr, "a connection broke: %s\n", why);
    errors++;
    if (c->state == OPENING) exit(3);
    c->state = BROKEN;
    close(c->fd);
}

static void watch_writing(Connection *c, int wanted) {
    if (c->watches_writing == wanted) return;
    c->watches_writing = wanted;
    struct epoll_event event = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event)) fail("epoll_ctl");
}

// What is not sent at once stays with the connection.
static void send_all(Connection *c, const char *bytes, size_t length) {
    size_t done = 0;
    while (done < length) {
        ssize_t n = send(c->fd, bytes + done, length - done, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) return give_up(c, strerror(errno));
        done += (size_t)n;
    }
    if (done == length) return;
    c->rest = realloc(c->rest, BUFFER_BYTES);
    if (!c->rest) fail("realloc");
    c->rest_length = length - done;
    c->rest_sent = 0;
    memcpy(c->rest, bytes + done, c->rest_length);
    watch_writing(c, 1);
}

static size_t put_message(Connection *c, char *place, double time) {
    size_t which = (size_t)(c - connection);
    memcpy(place, messages.bytes + which * messages.length, messages.length);
    if (number_at >= 0) {
        char number[NUMBER_BYTES + 16];
        snprintf(number, sizeof number, "%*ld", NUMBER_BYTES, c->sent * steps_each + 1);
        memcpy(place + number_at, number, NUMBER_BYTES);
    }
    c->sent_at[c->sent % window] = time;
    c->sent++;
    c->due--;
    return messages.length;
}

// Send the messages that are due, as many as the buffer holds at a time.
static void send_due(Connection *c) {
    while (c->state != BROKEN && !c->rest_length && (c->due || c->pong_length)) {
        size_t length = c->pong_length;
        memcpy(scratch, c->pong, c->pong_length);
        c->pong_length = 0;
        long fitting = (long)((BUFFER_BYTES - 256) / messages.length);
        long count = c->due < fitting ? c->due : fitting;
        if (count && protocol == NDJSON) length += (size_t)sprintf(scratch, "%zx\r\n", (size_t)count * messages.length);
        double time = now();
        for (long k = 0; k < count; k++) length += put_message(c, scratch + length, time);
        if (count && protocol == NDJSON) memcpy(scratch + length, "\r\n", 2), length += 2;
        send_all(c, scratch, length);
    }
}

static void send_rest(Connection *c) {
    while (c->rest_sent < c->rest_length) {
        ssize_t n = send(c->fd, c->rest + c->rest_sent, c->rest_length - c->rest_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) return;
        if (n < 0) return give_up(c, strerror(errno));
        c->rest_sent += (size_t)n;
    }
    c->rest_length = 0;
    watch_writing(c, 0);
    send_due(c);
}

static void note_latency(double latency) {
    if (latency_count == latency_room) {
        latency_room = latency_room ? 2 * latency_room : 1 << 16;
        latencies = realloc(latencies, latency_room * sizeof *latencies);
        if (!latencies) fail("realloc");
    }
    latencies[latency_count++] = (float)latency;
}

// Take the arrivals of a connection that is free: the k-th arrival of all belongs to connection k mod CONNECTIONS.
static void take_arrivals(Connection *c) {
    long next = (c - connection) + c->arrived * connections;
    if (next < arrived_count && c->sent * steps_each == c->steps) {
        c->arrived++;
        c->due++;
        send_due(c);
    }
}

static void answered(Connection *c, long steps) {
    c->steps += steps;
    if (c->state == OPENING) {
        if (c->steps < steps_each) return;
        c->state = LIVE;
        c->counted = 1;
        opening--;
        opened++;
        if (c == connection) fclose(answer), answer = NULL;
        return;
    }
    double time = now();
    if (time < stop) total_steps += steps;
    for (; c->counted < c->steps / steps_each; c->counted++) {
        double since = rate > 0 ? arrivals[(c - connection) + (c->arrived - 1) * connections]
                                : c->sent_at[c->counted % window];
        note_latency(time - since);
        if (rate == 0 && time < stop) c->due++;
    }
}

static void keep_answer(Connection *c, const char *data, size_t length) {
    if (c == connection && c->state == OPENING) fwrite(data, 1, length, answer);
}

static void end_line(Connection *c) {
    if (c->line_length >= 8 && !memcmp(c->line, "{\"error\"", 8)) return give_up(c, "the service sent an error line");
    if (c->line_length) answered(c, 1);
    c->line_length = 0;
}

static void take_text(Connection *c, const char *data, size_t length) {
    keep_answer(c, data, length);
    const char *end = data + length;
    while (data < end && c->state != BROKEN) {
        if (c->line_length < 8) {
            size_t lacking = 8 - c->line_length, there = (size_t)(end - data);
            memcpy(c->line + c->line_length, data, lacking < there ? lacking : there);
        }
        const char *newline = memchr(data, '\n', (size_t)(end - data));
        c->line_length += (size_t)((newline ? newline : end) - data);
        if (newline) end_line(c);
        data = newline ? newline + 1 : end;
    }
}

static void take_binary(Connection *c, const char *data, size_t length) {
    keep_answer(c, data, length);
    c->line_length += length;
    long whole = (long)c->line_length / unit;
    c->line_length -= (size_t)(whole * unit);
    if (whole) answered(c, whole);
}

static void send_first(Connection *c) {
    c->first_sent = 1;
    send_all(c, firsts.bytes + (size_t)(c - connection) * firsts.length, firsts.length);
    c->due = 1;
    send_due(c);
}

// Consumes the header, or what there is of it.
static size_t take_head(Connection *c, const char *data, size_t length) {
    size_t room = HEAD_BYTES - 1 - c->head_length, part = length < room ? length : room, before = c->head_length;
    memcpy(c->head + before, data, part);
    c->head[before + part] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end) {
        c->head_length += part;
        if (c->head_length == HEAD_BYTES - 1) give_up(c, "a header is too long");
        return part;
    }
    c->status = atoi(c->head + 9);
    int wanted = protocol == WS ? 101 : 200, chunked = 0;
    if (c->status != wanted && c->status != 201) {
        char why[64];
        snprintf(why, sizeof why, "status %d", c->status);
        give_up(c, why);
        return length;
    }
    c->left = 0;
    for (char *line = strstr(c->head, "\r\n"); line && line < end; line = strstr(line + 2, "\r\n")) {
        if (!strncasecmp(line + 2, "content-length:", 15)) c->left = atol(line + 17);
        if (!strncasecmp(line + 2, "transfer-encoding: chunked", 26)) chunked = 1;
    }
    c->head_length = 0;
    c->phase = protocol == WS ? FRAME_HEAD : protocol == NDJSON ? CHUNK_SIZE : BODY;
    if (protocol == NDJSON && !chunked) give_up(c, "the reply is no stream");
    if (protocol == WS && !c->first_sent) send_first(c);
    return (size_t)(end + 4 - c->head) - before;
}

static void end_frame(Connection *c) {
    c->phase = FRAME_HEAD;
    c->head_length = 0;
    if (c->opcode == 8) {
        give_up(c, "the service closed the WebSocket");
    } else if (c->opcode == 9) {  // masked, as all frames of a client must be, with a key of zeros
        memcpy(c->pong, (char[6]){(char)0x8A, (char)(0x80 | c->ping_length)}, 6);
        memcpy(c->pong + 6, c->ping, c->ping_length);
        c->pong_length = 6 + c->ping_length;
    } else if (c->opcode <= 1 && c->final && !unit) {
        end_line(c);
    }
}

static size_t take_frame_head(Connection *c, const char *data) {
    unsigned char *head = (unsigned char *)c->head;
    head[c->head_length++] = (unsigned char)*data;
    if (c->head_length < 2) return 1;
    size_t extra = (head[1] & 127) == 126 ? 2 : (head[1] & 127) == 127 ? 8 : 0;
    if (c->head_length < 2 + extra) return 1;
    c->left = extra ? 0 : head[1] & 127;
    for (size_t k = 0; k < extra; k++) c->left = c->left << 8 | head[2 + k];
    c->opcode = head[0] & 15;
    c->final = head[0] >> 7;
    c->phase = FRAME;
    c->ping_length = 0;
    if (c->opcode >= 8 && c->left > (long)sizeof c->ping) give_up(c, "a control frame is too long");
    else if (!c->left) end_frame(c);
    return 1;
}

static size_t take_frame(Connection *c, const char *data, size_t length) {
    size_t part = (size_t)c->left < length ? (size_t)c->left : length;
    c->left -= (long)part;
    if (c->opcode == 9) memcpy(c->ping + c->ping_length, data, part), c->ping_length += part;
    else if (c->opcode <= 2) unit ? take_binary(c, data, part) : take_text(c, data, part);
    if (!c->left && c->state != BROKEN) end_frame(c);
    return part;
}

static size_t take_chunk_size(Connection *c, const char *data) {
    c->head[c->head_length++] = *data;
    if (*data != '\n' || c->head_length > 32) return 1;
    c->left = strtol(c->head, NULL, 16);
    c->head_length = 0;
    c->phase = CHUNK;
    if (!c->left) give_up(c, "the service ended the stream");
    return 1;
}

static size_t take_body(Connection *c, const char *data, size_t length) {
    size_t part = (size_t)c->left < length ? (size_t)c->left : length;
    c->left -= (long)part;
    if (c->phase == BODY) keep_answer(c, data, part);
    else take_text(c, data, part);
    if (c->left || c->state == BROKEN) return part;
    if (c->phase == CHUNK) c->phase = CHUNK_END, c->left = 2;
    else c->phase = HEAD, answered(c, steps_each);
    return part;
}

static void take(Connection *c, const char *data, size_t length) {
    while (length && c->state != BROKEN) {
        size_t used = length;
        switch (c->phase) {
        case HEAD: used = take_head(c, data, length); break;
        case BODY: case CHUNK: used = take_body(c, data, length); break;
        case CHUNK_SIZE: used = take_chunk_size(c, data); break;
        case CHUNK_END: used = 1; if (--c->left == 0) c->phase = CHUNK_SIZE; break;
        case FRAME_HEAD: used = take_frame_head(c, data); break;
        case FRAME: used = take_frame(c, data, length); break;
        }
        data += used;
        length -= used;
    }
}

static void receive(Connection *c) {
    ssize_t n = recv(c->fd, received, BUFFER_BYTES, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) return give_up(c, n ? strerror(errno) : "the service closed the connection");
    take(c, received, (size_t)n);
    if (c->state == LIVE && rate > 0) take_arrivals(c);
    if (c->state == LIVE || c->pong_length) send_due(c);
}

static void open_next(void) {
    Connection *c = &connection[opened + opening];
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0) fail("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) fail("connect");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event)) fail("epoll_ctl");
    c->state = OPENING;
    opening++;
    send_all(c, openings.bytes + (size_t)(c - connection) * openings.length, openings.length);
    if (protocol != WS) send_first(c);
}

// Serve what is ready, or wait for at most that many seconds.
static void serve(double wait) {
    struct epoll_event events[512];
    long nanoseconds = wait > 0 ? (long)(1e9 * wait) : 0;
    struct timespec pause = {.tv_sec = nanoseconds / 1000000000, .tv_nsec = nanoseconds % 1000000000};
    int count = epoll_pwait2(poller, events, 512, &pause, NULL);
    for (int e = 0; e < count; e++) {
        Connection *c = events[e].data.ptr;
        if (c->state != BROKEN && events[e].events & EPOLLOUT) send_rest(c);
        if (c->state != BROKEN && events[e].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
    }
}

static Records read_records(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail(path);
    fseek(file, 0, SEEK_END);
    size_t length = (size_t)ftell(file);
    rewind(file);
    Records records = {malloc(length + 1), length / (size_t)connections};
    if (!records.bytes || fread(records.bytes, 1, length, file) != length) fail(path);
    fclose(file);
    return records;
}

static void draw_arrivals(void) {
    size_t room = (size_t)(1.5 * rate * seconds) + 1000;
    uint64_t state = 0x9E3779B97F4A7C15u;
    arrivals = malloc(room * sizeof *arrivals);
    if (!arrivals) fail("malloc");
    for (double t = 0; (size_t)arrival_count < room; arrival_count++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;  // xorshift64
        t -= log(((double)(state >> 11) + 0.5) * 0x1p-53) / rate;
        if (t > seconds) break;
        arrivals[arrival_count] = start + t;
    }
}

static void run_at_rate(void) {
    draw_arrivals();
    for (double end = stop + GRACE_SECONDS; now() < end && broken < connections;) {
        double time = now();
        for (; arrived_count < arrival_count && arrivals[arrived_count] <= time;) {
            Connection *c = &connection[arrived_count % connections];
            arrived_count++;
            if (c->state == LIVE) take_arrivals(c);
        }
        if ((long)latency_count == arrival_count) break;
        serve(arrived_count < arrival_count ? arrivals[arrived_count] - now() : 0.05);
    }
    errors += arrival_count - (long)latency_count;
}

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double percentile(double percent) {
    if (!latency_count) return 0;
    return 1e3 * (double)latencies[(size_t)(percent / 100 * (double)(latency_count - 1))];
}

int main(int argc, char **argv) {
    if (argc != 14) return fprintf(stderr, "see the head of live.c\n"), 2;
    address.sin_family = AF_INET;
    address.sin_port = htons((uint16_t)atoi(argv[1]));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    protocol = !strcmp(argv[2], "ws") ? WS : !strcmp(argv[2], "ndjson") ? NDJSON : HTTP;
    connections = atoi(argv[3]);
    window = atoi(argv[4]);
    seconds = atof(argv[5]);
    rate = atof(argv[6]);
    steps_each = atol(argv[7]);
    unit = atol(argv[8]);
    number_at = atol(argv[9]);
    openings = read_records(argv[10]);
    firsts = read_records(argv[11]);
    messages = read_records(argv[12]);
    answer = fopen(argv[13], "wb");
    connection = calloc((size_t)connections, sizeof *connection);
    poller = epoll_create1(0);
    if (!connection || poller < 0 || !answer || messages.length > BUFFER_BYTES / 2) fail("setting up");
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
    for (int i = 0; i < connections; i++)
        if (!(connection[i].sent_at = calloc((size_t)window, sizeof(double)))) fail("calloc");

    double patience = now() + OPENING_SECONDS;
    while (opened < connections) {
        if (now() > patience) return fprintf(stderr, "no answer within %d s\n", OPENING_SECONDS), 3;
        while (opening < OPENING_AT_ONCE && opened + opening < connections) open_next();
        serve(0.1);
    }

    printf("begin\n");
    fflush(stdout);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double busy = -1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) -
                  (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec);
    start = now();
    stop = start + seconds;
    if (rate > 0) {
        run_at_rate();
    } else {
        for (int i = 0; i < connections; i++) connection[i].due = window, send_due(&connection[i]);
        while (now() < stop && broken < connections) serve(stop - now());
    }
    double lasted = rate > 0 ? seconds : now() - start;
    getrusage(RUSAGE_SELF, &usage);
    busy += 1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) +
            (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec);
    qsort(latencies, latency_count, sizeof *latencies, by_size);
    printf("{\"steps\":%ld,\"messages\":%zu,\"seconds\":%.4f,\"p50_ms\":%.4f,\"p99_ms\":%.4f,\"p999_ms\":%.4f,"
           "\"errors\":%ld,\"client_busy\":%.3f}\n",
           total_steps, latency_count, lasted, percentile(50), percentile(99), percentile(99.9), errors, busy / lasted);
    return 0;
}
