"""Every method: one file each, and one line each in `METHODS`, which imports none of them."""

from typing import TYPE_CHECKING

from erasure_lightning.discovery import BuiltIn, load_built_in

if TYPE_CHECKING:
    from erasure_lightning.training.base import ErasureModule


def __getattr__(name: str) -> type["ErasureModule"]:
    """The class of a method, imported when it is first used."""
    cls: type[ErasureModule] = load_built_in(__name__, METHODS, name)
    return cls


def __dir__() -> list[str]:
    return sorted([*globals(), *METHODS])


METHODS = {
    "SAGE": BuiltIn(
        "erasure_lightning.methods.sage:SAGE",
        "Erases from the text encoder, and retains the meaning and denoising of other prompts",
        "Zhu et al. 2025, https://arxiv.org/abs/2506.09363",
    ),
    "AllButOne": BuiltIn(
        "erasure_lightning.methods.all_but_one:AllButOne",
        "Moves the guidance term to an alternative, and retains the unconditional prediction",
        "Hong et al. 2024, https://arxiv.org/abs/2312.12807",
    ),
    "RealEra": BuiltIn(
        "erasure_lightning.methods.realera:RealEra",
        "Mines the concept's neighbours, in closed form and then in low-rank adapters",
        "Liu et al. 2024, https://arxiv.org/abs/2410.09140",
    ),
    "RealEraClosedForm": BuiltIn(
        "erasure_lightning.methods.realera:RealEraClosedForm",
        "Mines the concept's neighbours, in closed form alone",
        "Liu et al. 2024, https://arxiv.org/abs/2410.09140",
    ),
    "ESD": BuiltIn(
        "erasure_lightning.methods.esd:ESD",
        "Guides the concept away from itself, at latents of the original's trajectories",
        "Gandikota et al. 2023, https://arxiv.org/abs/2303.07345",
    ),
    "EAP": BuiltIn(
        "erasure_lightning.methods.eap:EAP",
        "Guides the concept away from itself, and retains the words that this harms most",
        "Bui et al. 2024, https://arxiv.org/abs/2410.15618",
    ),
    "CA": BuiltIn(
        "erasure_lightning.methods.ca:CA",
        "Predicts for the concept what the model predicts for its anchor",
        "Kumari et al. 2023, https://arxiv.org/abs/2303.13516",
    ),
    "FMN": BuiltIn(
        "erasure_lightning.methods.fmn:FMN",
        "Minimises the attention that pixels pay to the concept's words",
        "Zhang et al. 2023, https://arxiv.org/abs/2303.17591",
    ),
    "UCE": BuiltIn(
        "erasure_lightning.methods.uce:UCE",
        "Maps the concept's last token to its anchor's, in closed form",
        "Gandikota et al. 2024, https://arxiv.org/abs/2308.14761",
    ),
    "RECE": BuiltIn(
        "erasure_lightning.methods.rece:RECE",
        "Repeats UCE on the embeddings that would bring the concept back",
        "Gong et al. 2024, https://arxiv.org/abs/2407.12383",
    ),
    "MACE": BuiltIn(
        "erasure_lightning.methods.mace:MACE",
        "Refines in closed form, suppresses attention in an adapter per concept, and fuses them",
        "Lu et al. 2024, https://arxiv.org/abs/2403.06135",
    ),
    "TRCE": BuiltIn(
        "erasure_lightning.methods.trce:TRCE",
        "Maps the end-of-text state to the anchor's, then steers early steps towards the anchor",
        "Chen et al. 2025, https://arxiv.org/abs/2503.07389",
    ),
    "SPM": BuiltIn(
        "erasure_lightning.methods.spm:SPM",
        "Trains one-dimensional adapters, gated by a prompt's similarity to the concept",
        "Lyu et al. 2024, https://arxiv.org/abs/2312.16145",
    ),
    "GLoCE": BuiltIn(
        "erasure_lightning.methods.gloce:GLoCE",
        "Maps pixels that show the concept to its anchor by gated low-rank maps, without training",
        "Lee et al. 2025, https://arxiv.org/abs/2503.12356",
    ),
    "SDD": BuiltIn(
        "erasure_lightning.methods.sdd:SDD",
        "Distills the concept's prediction into the model's own for the empty prompt",
        "Kim et al. 2023, https://arxiv.org/abs/2307.05977",
    ),
    "SalUn": BuiltIn(
        "erasure_lightning.methods.salun:SalUn",
        "Relabels the concept, in the weights that matter most to it",
        "Fan et al. 2024, https://arxiv.org/abs/2310.12508",
    ),
    "AdvUnlearn": BuiltIn(
        "erasure_lightning.methods.advunlearn:AdvUnlearn",
        "Trains the text encoder against adversarial prompts",
        "Zhang et al. 2024, https://arxiv.org/abs/2405.15234",
    ),
    "RACE": BuiltIn(
        "erasure_lightning.methods.race:RACE",
        "Erases as ESD does, against changes of the text states",
        "Kim et al. 2024, https://arxiv.org/abs/2405.16341",
    ),
    "STEREO": BuiltIn(
        "erasure_lightning.methods.stereo:STEREO",
        "Searches words that restore the concept, then erases all of them from the original",
        "Srivatsan et al. 2025, https://arxiv.org/abs/2408.16807",
    ),
    "Receler": BuiltIn(
        "erasure_lightning.methods.receler:Receler",
        "Trains erasers after attention to text against adversarial embeddings",
        "Huang et al. 2024, https://arxiv.org/abs/2311.17717",
    ),
    "ANT": BuiltIn(
        "erasure_lightning.methods.ant:ANT",
        "Retains early steps and steers late ones away from the concept",
        "Li et al. 2025, https://arxiv.org/abs/2504.12782",
    ),
    "AdaVD": BuiltIn(
        "erasure_lightning.methods.adavd:AdaVD",
        "Takes the concept's share out of the values of cross-attention, as a rule at inference",
        "Wang et al. 2025, https://arxiv.org/abs/2412.06143",
    ),
    "SLD": BuiltIn(
        "erasure_lightning.methods.sld:SLD",
        "Guides predictions away from the concept where they come near it, as a rule at inference",
        "Schramowski et al. 2023, https://arxiv.org/abs/2211.05105",
    ),
    "SAFREE": BuiltIn(
        "erasure_lightning.methods.safree:SAFREE",
        "Projects the words that evoke the concept out of its subspace, as a rule at inference",
        "Yoon et al. 2025, https://arxiv.org/abs/2410.12761",
    ),
    "EraseAnything": BuiltIn(
        "erasure_lightning.methods.eraseanything:EraseAnything",
        "Guides away, takes attention from the concept's words, and retains others",
        "Gao et al. 2025, https://arxiv.org/abs/2412.20413",
    ),
    "EraseFlow": BuiltIn(
        "erasure_lightning.methods.eraseflow:EraseFlow",
        "Makes the anchor's stochastic trajectories as likely for the concept's prompt",
        "Kusumba et al. 2025, https://arxiv.org/abs/2511.00804",
    ),
}
