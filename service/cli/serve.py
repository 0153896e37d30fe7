"""`rnn-service serve`."""

from service.settings import Settings


def serve(settings: Settings) -> None:
    """Serve the models of a repository over HTTP until SIGTERM or Ctrl-C.

    Every option is also an RNN_* variable and a line of a .env file: the command line goes first, then the environment,
    then .env.
    """
    from service.server.process import serve as run  # noqa: PLC0415  # uvicorn is not needed for --help

    run(settings)
