"""A local page with images of the original model beside the edited one's."""

import html
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, NamedTuple

import torch
from PIL.Image import Image

from erasure_lightning.api.accelerator import default_device
from erasure_lightning.api.base_model import load_base_model, run_sampling
from erasure_lightning.api.quiet import quiet
from erasure_lightning.checks import require, require_host, require_seed
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.data.image_grid import to_pil
from erasure_lightning.diffusion.sampling import sample_images
from erasure_lightning.edits.applied import load_edit
from erasure_lightning.edits.base_edits import titles
from erasure_lightning.edits.format import required_entry
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import shell_word
from erasure_lightning.training.checkpoints import locate_checkpoint

#: Words with a button of their own, at most, for each concept.
_MAX_WORDS = 12

#: A button's prompt, by the concept's kind.
_PROMPTS = {"thing": "a {}", "style": "{}", "person": "a photo of {}", "action": "a person {}"}

_HEADINGS = {
    "erased": "Erased:",
    "described": "Without its name:",
    "anchors": "Generated in its place:",
}

#: Below this side, images are enlarged without smoothing.
_SMALL = 200

_CSS = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")

_THEME = {
    "primary_hue": "indigo",
    "font": ["system-ui", "sans-serif"],
    "font_mono": ["ui-monospace", "monospace"],
}

#: Arguments of the page: without a public address, served by a thread.
_LAUNCH: dict[str, Any] = {"share": False, "quiet": True, "prevent_thread_lock": True}
_LAUNCH |= {"footer_links": [], "ssr_mode": False}


class WordButton(NamedTuple):
    """A word of a concept and the prompt that its button sets."""

    word: str
    prompt: str


class SideBySide:
    """Images of a model and of its edit from equal noise; each call sets the edit's strength.

    There is a single copy of the model; at strength 0 it is the one without the edit, to the bit.

    Args:
        run: A run's folder, or its ``edit.safetensors``.
        steps: Sampling steps, at least 1; by default the run's, else the model's.
        backbone: Where the base model is now; by default as the edit names it.

    Raises:
        ErasureError: If the edit or its base model cannot be read.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from erasure_lightning import erase
        >>> from erasure_lightning.api.demo import SideBySide
        >>> from erasure_lightning.backbones.tiny import TinyBackbone
        >>> with TemporaryDirectory() as folder:
        ...     TinyBackbone().to_pipeline().save_pretrained(f"{folder}/model")
        ...     edit = erase(TinyBackbone().to_pipeline(), "cat", method="UCE", progress_bar=False)
        ...     file = edit.save(f"{folder}/edit.safetensors")
        ...     both = SideBySide(file, steps=2, backbone=f"{folder}/model")
        ...     both.generate("a cat", 0, strength=0.0) == both.generate("a cat", 0, strength=1.0)
        False
    """

    def __init__(
        self, run: str | Path, steps: int | None = None, backbone: str | None = None
    ) -> None:
        require("A demo", at_least=1, steps=steps)
        path = locate_checkpoint(str(run), "demo")
        if path.suffix != ".safetensors":
            raise ErasureError(
                f"A demo needs a finished edit; found the checkpoint {path}. Finish the run with"
                f" `erasure fit --ckpt_path {shell_word(run)}`."
            )
        self.edit = load_edit(path)
        metadata = self.edit.metadata
        self.title = self.edit.title
        base = self.edit.base_edits
        self.base_title = f"With {titles(base)}" if base else "Original"
        self.concepts = [Concept(**concept) for concept in required_entry(metadata, "concepts")]
        self.backbone = load_base_model(metadata, backbone)
        self.backbone.eval().to(default_device())
        self.edit.apply(self.backbone.to_pipeline())
        own_steps, self.guidance = run_sampling(metadata, self.backbone)
        self.steps = steps or own_steps
        self.backbone.sampler(self.steps)  # refuses more steps than the model has times
        self._lock = Lock()
        self.generate = lru_cache(256)(self._generate)

    def _generate(self, prompt: str, seed: int, strength: float) -> Image:
        """The image of a prompt and a seed at a strength of the edit."""
        require_seed("A demo", seed)
        with self._lock, torch.inference_mode():
            self.edit.strength = strength
            images = sample_images(
                self.backbone, [prompt], [seed], steps=self.steps, guidance=self.guidance
            )
        return to_pil(images[0])


def word_buttons(concepts: Sequence[Concept]) -> dict[str, list[WordButton]]:
    """Buttons by heading: the concepts, the words of their domains, and their anchors."""
    buttons: dict[str, list[WordButton]] = {"erased": [], "described": [], "anchors": []}
    for concept in concepts:
        prompt = _PROMPTS[concept.kind]
        words = {
            "erased": [concept.name],
            "described": list(concept.domain)[:_MAX_WORDS],
            "anchors": [concept.anchor] if concept.anchor else [],
        }
        for heading, listed in words.items():
            buttons[heading] += [WordButton(word, prompt.format(word)) for word in listed]
    return {
        heading: list(dict.fromkeys(several))[: 2 * _MAX_WORDS]
        for heading, several in buttons.items()
        if several
    }


def serve_demo(
    run: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    steps: int | None = None,
    backbone: str | None = None,
    ready: Callable[[str], None] = print,
) -> None:
    """Serve the page of a run until it is interrupted; no data leaves the machine.

    Args:
        run: A run's folder, or its ``edit.safetensors``.
        host: Address that it is bound to. The default is reachable from this machine only.
        port: The port; by default the first free one from 7860.
        steps: Sampling steps, at least 1; by default the run's, else the model's.
        backbone: Where the base model is now; by default as the edit names it.
        ready: Is called with the page's address once it is there.

    Raises:
        ErasureError: If Gradio is not installed, the run cannot be read, the host is no address of
            this machine, or the port is taken or out of range.
        KeyboardInterrupt: At Ctrl-C.
    """
    require("A demo", at_least=1, at_most=65535, port=port)
    require_host("A demo", host)
    with TemporaryDirectory() as folder, _private(folder), quiet():
        gradio = _gradio()
        page = _page(gradio, SideBySide(run, steps, backbone))
        try:
            theme = gradio.themes.Default(**_THEME)
            _, address, _ = page.launch(
                server_name=host, server_port=port, css=_CSS, theme=theme, **_LAUNCH
            )
        except OSError as error:
            taken = f"port {port}, which is taken" if port else "none from 7860"
            raise ErasureError(
                f"The demo needs a free port at {host}; found {taken}. Name another: --port N"
            ) from error
        try:
            ready(address)
            while True:
                time.sleep(3600)
        finally:
            page.close(verbose=False)


@contextmanager
def _private(folder: str) -> Iterator[None]:
    """Gradio's environment: no statistics, a temporary folder of images, no proxy."""
    hosts = [os.environ.get("NO_PROXY", ""), "127.0.0.1", "localhost"]
    settings = {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_TEMP_DIR": folder,
        "NO_PROXY": ",".join(filter(None, hosts)),
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise ErasureError(
            "A demo needs Gradio; found none. Install it: pip install 'erasure-lightning[demo]'"
        ) from error
    return gradio


def _page(gradio: Any, both: SideBySide) -> Any:
    """The page: prompt, words, seed and strength above the two images."""
    buttons = word_buttons(both.concepts)
    first = buttons["erased"][0].prompt
    with gradio.Blocks(title=both.title, analytics_enabled=False, fill_width=True) as page:
        title = html.escape(both.title)
        gradio.HTML(
            f"<h1>{title}</h1><p>From the same noise, before and after the edit.</p>",
            elem_classes="heading",
            padding=False,
        )
        prompt = gradio.Textbox(first, label="Prompt", submit_btn="Generate", elem_id="prompt")
        chosen = []
        for heading, several in buttons.items():
            with gradio.Row(elem_classes="row-of-words"):
                gradio.HTML(f'<p class="words">{_HEADINGS[heading]}</p>', padding=False)
                chosen += [(gradio.Button(b.word, size="sm"), b.prompt) for b in several]
        with gradio.Row():
            seed = gradio.Number(0, label="Seed", precision=0, min_width=100, scale=1)
            strength = gradio.Slider(
                0, 2, 1, step=0.05, label="Strength of the edit", min_width=180, scale=3
            )
        with gradio.Row():
            captions = (("original", both.base_title), ("edited", "Edited"))
            images = [_image(gradio, both, *caption) for caption in captions]
        _connect(gradio, both, page, (prompt, seed, strength), images, chosen)
    return page


def _image(gradio: Any, both: SideBySide, name: str, title: str) -> Any:
    side = both.generate("", 0, 0.0).width
    with gradio.Column(min_width=120):
        gradio.HTML(f'<p class="caption">{html.escape(title)}</p>', padding=False)
        return gradio.Image(
            label=title,
            show_label=False,
            container=False,
            alt_text=f"{name} model's image",
            type="pil",
            format="png",
            interactive=False,
            buttons=[],
            min_width=120,
            elem_id=name,
            elem_classes=["generated", *(["pixels"] if side <= _SMALL else [])],
        )


def _connect(
    gradio: Any,
    both: SideBySide,
    page: Any,
    inputs: Sequence[Any],
    images: Sequence[Any],
    chosen: Sequence[tuple[Any, str]],
) -> None:
    """Generate when the page opens, and at each change that is complete."""
    prompt, seed, strength = inputs

    def generate(prompt: str, seed: int | None, strength: float) -> tuple[Image, Image]:
        try:
            generated = partial(both.generate, prompt, int(seed or 0))
            return generated(0.0), generated(float(strength))
        except ErasureError as error:
            raise gradio.Error(str(error), print_exception=False) from error

    settings = {"api_visibility": "private", "show_progress": "minimal"}
    generating = {"fn": generate, "inputs": inputs, "outputs": images, **settings}
    triggers = [page.load, prompt.submit, seed.submit, seed.blur, strength.release]
    gradio.on(triggers, concurrency_limit=1, **generating)
    for button, text in chosen:
        setting = button.click(partial(str, text), outputs=prompt, queue=False, **settings)
        setting.then(**generating)
