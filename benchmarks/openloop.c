// Open-loop load for one HTTP/1.1 server: arrivals do not wait for replies.
//
//   openloop PORT REQUEST_FILE REQUESTS_PER_SECOND SECONDS CONNECTIONS TIMEOUT_SECONDS SEED
//
// Requests arrive as a Poisson process and take the first free connection; while none is free they wait in line, and
// that time counts: latency runs from the arrival to the last byte of the reply, so a server that falls behind cannot
// slow the load down (no coordinated omission). Prints a line for every arrival: its time and its latency in
// microseconds, and the status (0: no reply in time, or a broken connection).

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
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
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_BYTES = 8192, READ_BYTES = 1 << 16 };

typedef struct {
    int fd;
    uint32_t events;  // what is watched for
    long arrival;  // index of the request under way, -1 if free
    size_t sent;
    char head[HEAD_BYTES];
    size_t head_length;
    long body_left;  // -1 until the header is complete
    int status;
    int keep_alive;
} Connection;

static struct sockaddr_in address;
static char *request;
static size_t request_length;
static double *arrivals;  // seconds from the start
static long arrived, taken, finished, total;
static int poller, connections, free_count;
static Connection *connection;
static int *free_list;
static double timeout_seconds;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    static double start;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    double seconds = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    if (start == 0) start = seconds;
    return seconds - start;
}

static void watch(int i, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.u32 = (uint32_t)i};
    if (operation == EPOLL_CTL_MOD && connection[i].events == events) return;
    connection[i].events = events;
    if (epoll_ctl(poller, operation, connection[i].fd, &event)) fail("epoll_ctl");
}

static void open_connection(int i) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (fd < 0) fail("socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) fail("connect");
    connection[i].fd = fd;
    watch(i, EPOLLIN, EPOLL_CTL_ADD);
}

static void finish(int i, int status, double time) {
    Connection *c = &connection[i];
    if (c->arrival >= 0) {
        printf("%.0f %.1f %d\n", 1e6 * arrivals[c->arrival], 1e6 * (time - arrivals[c->arrival]), status);
        finished++;
        free_list[free_count++] = i;
    }
    // A reply that came before its request was sent to the end leaves the connection in no usable state.
    int reusable = status && c->keep_alive && c->sent == request_length;
    c->arrival = -1;
    if (!reusable) {
        close(c->fd);
        open_connection(i);
    }
}

static void send_more(int i) {
    Connection *c = &connection[i];
    while (c->sent < request_length) {
        ssize_t n = send(c->fd, request + c->sent, request_length - c->sent, MSG_NOSIGNAL);
        if (n < 0) break;  // full, still connecting, or broken: what is to be read will tell
        c->sent += (size_t)n;
    }
    watch(i, c->sent < request_length ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
}

static void begin(int i, long arrival) {
    Connection *c = &connection[i];
    c->arrival = arrival;
    c->sent = c->head_length = 0;
    c->body_left = -1;
    c->status = 0;
    c->keep_alive = 1;
    send_more(i);
}

// Status, length and whether the connection stays, once the header is complete; a chunked body ends with its last chunk.
static void parse_head(Connection *c, const char *end) {
    c->status = atoi(c->head + 9);
    long length = 0;
    int chunked = 0;
    for (char *line = strstr(c->head, "\r\n"); line && line < end; line = strstr(line + 2, "\r\n")) {
        if (!strncasecmp(line + 2, "content-length:", 15)) length = atol(line + 17);
        if (!strncasecmp(line + 2, "transfer-encoding: chunked", 26)) chunked = 1;
        if (!strncasecmp(line + 2, "connection: close", 17)) c->keep_alive = 0;
    }
    long extra = (long)(c->head + c->head_length - end - 4);
    c->body_left = chunked ? -2 : length - extra;
    if (chunked && extra >= 5 && !memcmp(c->head + c->head_length - 5, "0\r\n\r\n", 5)) c->body_left = 0;
}

static void receive(int i) {
    static char buffer[READ_BYTES];
    Connection *c = &connection[i];
    for (;;) {
        int in_head = c->body_left == -1;
        size_t room = HEAD_BYTES - 1 - c->head_length;
        ssize_t n = in_head ? recv(c->fd, c->head + c->head_length, room, 0) : recv(c->fd, buffer, READ_BYTES, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINPROGRESS)) return;
        if (n <= 0) return finish(i, 0, now());
        if (in_head) {
            c->head_length += (size_t)n;
            c->head[c->head_length] = 0;
            char *end = strstr(c->head, "\r\n\r\n");
            if (end) parse_head(c, end);
            else if (c->head_length == HEAD_BYTES - 1) return finish(i, 0, now());
        } else if (c->body_left == -2) {
            if (n >= 5 && !memcmp(buffer + n - 5, "0\r\n\r\n", 5)) c->body_left = 0;
        } else {
            c->body_left -= n;
        }
        if (c->body_left == 0) return finish(i, c->status, now());
    }
}

static void expire(double time) {
    for (int i = 0; i < connections; i++)
        if (connection[i].arrival >= 0 && time - arrivals[connection[i].arrival] > timeout_seconds) finish(i, 0, time);
    for (; taken < arrived && time - arrivals[taken] > timeout_seconds; taken++, finished++)
        printf("%.0f %.1f 0\n", 1e6 * arrivals[taken], 1e6 * (time - arrivals[taken]));
}

static void read_request(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail(path);
    fseek(file, 0, SEEK_END);
    request_length = (size_t)ftell(file);
    rewind(file);
    request = malloc(request_length);
    if (!request || fread(request, 1, request_length, file) != request_length) fail(path);
    fclose(file);
}

static void draw_arrivals(double rate, double seconds, uint64_t state) {
    size_t room = (size_t)(1.5 * rate * seconds) + 1000;
    arrivals = malloc(room * sizeof *arrivals);
    if (!arrivals) fail("malloc");
    double t = 0;
    for (total = 0; (size_t)total < room; total++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;  // xorshift64
        t -= log(((double)(state >> 11) + 0.5) * 0x1p-53) / rate;
        if (t > seconds) break;
        arrivals[total] = t;
    }
}

int main(int argc, char **argv) {
    if (argc != 8) return fprintf(stderr, "see the head of openloop.c\n"), 2;
    address.sin_family = AF_INET;
    address.sin_port = htons((uint16_t)atoi(argv[1]));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    read_request(argv[2]);
    draw_arrivals(atof(argv[3]), atof(argv[4]), 0x9E3779B97F4A7C15u * (2 * strtoull(argv[7], NULL, 10) + 1));
    connections = atoi(argv[5]);
    timeout_seconds = atof(argv[6]);
    connection = calloc((size_t)connections, sizeof *connection);
    free_list = calloc((size_t)connections, sizeof *free_list);
    poller = epoll_create1(0);
    if (!connection || !free_list || poller < 0) fail("setting up");
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
    for (int i = 0; i < connections; i++) {
        connection[i].arrival = -1;
        open_connection(i);
        free_list[free_count++] = i;
    }
    usleep(200000);  // the server accepts them all before the first request
    struct epoll_event events[256];
    double next_expiry = now() + 0.1;
    double start = now();
    for (long k = 0; k < total; k++) arrivals[k] += start;
    while (finished < total) {
        double time = now();
        while (arrived < total && arrivals[arrived] <= time) arrived++;
        while (taken < arrived && free_count) begin(free_list[--free_count], taken), taken++;
        if (time > next_expiry) expire(time), next_expiry = time + 0.1;
        double wait = (arrived < total && arrivals[arrived] < next_expiry ? arrivals[arrived] : next_expiry) - now();
        long nanoseconds = wait > 0 ? (long)(1e9 * wait) : 0;
        struct timespec pause = {.tv_sec = nanoseconds / 1000000000, .tv_nsec = nanoseconds % 1000000000};
        int count = epoll_pwait2(poller, events, 256, &pause, NULL);
        for (int e = 0; e < count; e++) {
            int i = (int)events[e].data.u32;
            if (events[e].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(i);
            if (events[e].events & EPOLLOUT && connection[i].arrival >= 0) send_more(i);
        }
    }
    return 0;
}
