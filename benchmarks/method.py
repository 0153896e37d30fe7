"""How the figures were taken, in words, for the pages that show them."""

METHOD = """\
## How it was measured

Each server is one process on 127.0.0.1 of the same machine, with its default threads unless said, and so is the load.
All servers get the same weights and the same JSON body; their answers are checked against PyTorch in float64 first (at
most 1e-5 apart). Request logs are off in all of them. CPU is user + system time of the server per answered request.

**Closed loop** (Load): `wrk -t1`, connections as listed, each client sends its next request when it has its reply.
Servers take turns within each round, in another order each round; a figure is the median of the rounds, with the
smallest and largest beside it. Ratios are taken within a round, against the fastest of the naive variants. A run lasts
1 s, or up to 3 s where there are fewer than 30 answers in one; "short run" marks those that had fewer all the same.

**Open loop** (Fixed arrival rates, benchmarks/openloop.c): requests arrive as a Poisson process whatever the server
does, over up to 512 connections; latency runs from the arrival, waiting for a free connection included. The load has
the last core for itself and the server all others; an answer counts if it comes within a second of its arrival. Rates
are shares of what the server did in closed loop just before: 0.2, 0.5, 0.8, 1, 1.5, and for ours 3 over 10 s. Large
requests come to our service alone: others answer a handful a second, too few for a percentile. A percentile is left out
where fewer than five values lie beyond it, so a p99.9 needs 5,000 answers: the table says how many there were. On two
cores the servers have one, where a second worker gains nothing. Steps and small forwards are not refused: what is
beyond the 512 connections waits in the load, longer and longer, and comes late or, after 10 s, never ("failed").

**Steps beside large requests**: steps at half of the closed loop's rate, while wrk keeps the large cell's clients busy
on the same server.

**Streams and sessions** (benchmarks/live.c): every stream is a connection that keeps a number of messages unanswered;
lines that are due at once go as one chunk. The hand-written endpoint's WebSocket keeps the state in a variable: one
`nn.RNNCell` call for each text frame, one `nn.RNN` call for each binary frame. Percentiles are left out where the
messages under way at the end could change them. Sessions step by numbered HTTP requests, a session on each connection.
Idle sessions are opened over HTTP, and their memory is the rise of the resident memory; 100,000 expired ones are
remembered, which of so few is most. Valkey keeps an append-only
file that is synced once a second.

**Batching**: one row at a time is the same service, but a turn of its scheduler holds one row.

**Cost**: CPU of our service alone, the median of three rounds. The line is fitted to all cells of the axes B and T by
least squares of the relative error; the bend is the B·T at which two lines that meet fit best, and counts as one if
that halves the error. A request that is no longer run where it was read, but in the turns of compute threads, costs
some 0.4 ms of CPU more: the step in safetensors at B·T = 512.

**Memory**: resident memory is the sum over a server's processes, pages that they share counted in each. Peak memory: a
fresh process, one short request, then one large one; the rise of VmHWM over what was resident.

`naive` (benchmarks/naive.py) is the endpoint that most people write: FastAPI, nested lists, `torch.tensor`, `nn.RNN`,
`.tolist()`. The bare ASGI echo (uvicorn, uvloop, httptools) reads the whole body and writes the right answer, prepared
beforehand: the floor of the web layer."""

RIVALS = """\
The rivals (benchmarks/rivals) run as their documentation shows for one worker on a CPU, each in an environment of its
own, with torch's threads set to 1; they are started for their turn in each round, since their processes do not rest
when idle. Where their own way of printing a reply is slow for nested lists (LitServe, Ray Serve), pydantic prints it
and it is handed over as bytes: LitServe then answers 1.4 times as many medium requests, Ray Serve seven times.
LitServe: one LitAPI and one worker process (plus its HTTP process). BentoML: one service, `workers=1`, `numpy.ndarray`
arguments. Ray Serve: one replica with `max_ongoing_requests=256` behind HAProxy; behind its own proxy it is slower, and
measured only if asked for (`--servers "Ray Serve"`).

With batching, on the cell `batch` (64 clients, a row of 64 steps each): LitServe `max_batch_size=16,
batch_timeout=0.002`; BentoML a `batchable` call, `max_batch_size=16`, that takes the same body as a list of one; Ray
Serve `@serve.batch` with `max_batch_size=16, batch_wait_timeout_s=0.002`.

× naive: the median of the ratios within the rounds, against the fastest of the three naive variants. All answers were
checked against PyTorch in float64 before they were timed. Latencies are those of a closed loop; at fixed arrival rates:
[benchmarks.md](benchmarks.md#fixed-arrival-rates)."""

REPRODUCE = """\
## Again

Needs `wrk` and a C compiler; about three quarters of an hour on two cores, of which the rivals take a third.

```console
$ make rivals                                  # environments of LitServe, BentoML and Ray Serve, in .bench/
$ make bench                                   # all of it; says before how long it takes, and how long is left
$ make bench BENCH="--onto results.json"       # the same; begun again after a cut, it goes on where it was
$ make bench BENCH="--estimate"                # how long each part would take
$ .venv/bin/python -m benchmarks.pages {samples}   # these pages anew from a file, without measuring
```

Every result is in the file as soon as it is there. What can be left out: parts (`--parts load open streams`), servers
(`--servers rnn-service "naive async, 1 thread"`), cells (`--cells step medium`), rounds (`--rounds 3`); `--quick` is
one short round of everything. A part that is there already is measured anew with `--again`.
`.venv/bin/python -m benchmarks.bench --help` lists the rest."""
