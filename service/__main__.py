"""`python -m service` is `rnn-service`."""

from service.cli import main

if __name__ == "__main__":
    main()
