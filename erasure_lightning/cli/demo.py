"""``erasure demo``: a run as a local page."""

import signal

from erasure_lightning.cli.arguments import Arguments


def run_demo(argv: list[str]) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Raises:
        ErasureError: If Gradio is not installed, the run cannot be read, or the port is taken.
    """
    options = _parser().parse(argv)
    from erasure_lightning.api.demo import serve_demo

    def ready(address: str) -> None:
        print(f"The demo is at {address} (Ctrl-C ends it).", flush=True)
        if options.host not in ("127.0.0.1", "localhost", "::1"):
            print("Other machines can reach it: it has no password.", flush=True)

    # The default handler would leave the folder of generated images behind.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        serve_demo(**vars(options), ready=ready)
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> Arguments:
    parser = Arguments(
        "demo",
        "Serve a page with a prompt, a seed and the edit's strength: the original model's image"
        " beside the edited one's. No data leaves this machine.",
    )
    parser.add_run()
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="Address to bind to; 0.0.0.0 admits other machines, without a password.",
    )
    parser.add_options(
        int,
        port="By default the first free port from 7860.",
        steps="Sampling steps; by default the run's, else the model's.",
    )
    parser.add_backbone()
    return parser
