"""The methods text of a report: sentences about what was really run, each with its sources."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cmrfed.data.synthetic import LearnedFrom
from cmrfed.evaluation.results.catalogue import word
from cmrfed.evaluation.results.result import Metric
from cmrfed.generators.settings import PROCESSES
from cmrfed.generators.stages import DRAWING, STAGES, StageName
from cmrfed.pipeline.files.record import PluginEntry

SOURCES = {
    "latent": "Rombach R, Blattmann A, Lorenz D, Esser P, Ommer B. High-resolution image synthesis with latent "
    "diffusion models. CVPR 2022. arXiv 2112.10752.",
    "ddim": "Song J, Meng C, Ermon S. Denoising diffusion implicit models. ICLR 2021. arXiv 2010.02502.",
    "dpm++": "Lu C, Zhou Y, Bao F, Chen J, Li C, Zhu J. DPM-Solver++: fast solver for guided sampling of diffusion "
    "probabilistic models. 2022. arXiv 2211.01095.",
    "heun": "Karras T, Aittala M, Aila T, Laine S. Elucidating the design space of diffusion-based generative "
    "models. NeurIPS 2022. arXiv 2206.00364.",
    "guidance": "Ho J, Salimans T. Classifier-free diffusion guidance. 2022. arXiv 2207.12598.",
    "flower": "Beutel DJ, Topal T, Mathur A, et al. Flower: a friendly federated learning research framework. "
    "2020. arXiv 2007.14390.",
    "fedavg": "McMahan HB, Moore E, Ramage D, Hampson S, Agüera y Arcas B. Communication-efficient learning of deep "
    "networks from decentralized data. AISTATS 2017. arXiv 1602.05629.",
    "fedprox": "Li T, Sahu AK, Zaheer M, Sanjabi M, Talwalkar A, Smith V. Federated optimization in heterogeneous "
    "networks. MLSys 2020. arXiv 1812.06127.",
    "fedavgm": "Hsu TMH, Qi H, Brown M. Measuring the effects of non-identical data distribution for federated "
    "visual classification. 2019. arXiv 1909.06335.",
    "fedopt": "Reddi SJ, Charles Z, Zaheer M, et al. Adaptive federated optimization. ICLR 2021. arXiv 2003.00295.",
    "trimmed-mean": "Yin D, Chen Y, Ramchandran K, Bartlett P. Byzantine-robust distributed learning: towards "
    "optimal statistical rates. ICML 2018. arXiv 1803.01498.",
    "krum": "Blanchard P, El Mhamdi EM, Guerraoui R, Stainer J. Machine learning with adversaries: Byzantine "
    "tolerant gradient descent. NeurIPS 2017.",
    "kid": "Bińkowski M, Sutherland DJ, Arbel M, Gretton A. Demystifying MMD GANs. ICLR 2018. arXiv 1801.01401.",
    "fid": "Heusel M, Ramsauer H, Unterthiner T, Nessler B, Hochreiter S. GANs trained by a two time-scale update "
    "rule converge to a local Nash equilibrium. NeurIPS 2017. arXiv 1706.08500.",
    "frd": "Konz N, Osuala R, Verma P, et al. Fréchet radiomic distance (FRD): a versatile metric for comparing "
    "medical imaging datasets. Med Image Anal 2026;110:103943. arXiv 2412.01496.",
    "ssim": "Wang Z, Bovik AC, Sheikh HR, Simoncelli EP. Image quality assessment: from error visibility to "
    "structural similarity. IEEE Trans Image Process 2004;13(4):600-612.",
    "ms-ssim": "Wang Z, Simoncelli EP, Bovik AC. Multiscale structural similarity for image quality assessment. "
    "Asilomar Conference on Signals, Systems and Computers 2003.",
    "lpips": "Zhang R, Isola P, Efros AA, Shechtman E, Wang O. The unreasonable effectiveness of deep features as "
    "a perceptual metric. CVPR 2018. arXiv 1801.03924.",
    "precision": "Kynkäänniemi T, Karras T, Laine S, Lehtinen J, Aila T. Improved precision and recall metric for "
    "assessing generative models. NeurIPS 2019. arXiv 1904.06991.",
    "coverage": "Naeem MF, Oh SJ, Uh Y, Choi Y, Yoo J. Reliable fidelity and diversity metrics for generative models. "
    "ICML 2020. arXiv 2002.09797.",
    "surface": "Taha AA, Hanbury A. Metrics for evaluating 3D medical image segmentation: analysis, selection, and "
    "tool. BMC Med Imaging 2015;15:29.",
    "agreement": "Bland JM, Altman DG. Statistical methods for assessing agreement between two methods of clinical "
    "measurement. Lancet 1986;327(8476):307-310.",
    "holm": "Holm S. A simple sequentially rejective multiple test procedure. Scand J Stat 1979;6(2):65-70.",
    "dice": "Dice LR. Measures of the amount of ecologic association between species. Ecology 1945;26(3):297-302.",
    "monai": "Cardoso MJ, Li W, Brown R, et al. MONAI: an open-source framework for deep learning in healthcare. "
    "2022. arXiv 2211.02701.",
    "nnunet": "Isensee F, Jaeger PF, Kohl SAA, Petersen J, Maier-Hein KH. nnU-Net: a self-configuring method for deep "
    "learning-based biomedical image segmentation. Nat Methods 2021;18(2):203-211.",
    "memorisation": "Dar SUH, Seyfarth M, Ayx I, et al. Unconditional latent diffusion models memorize patient "
    "imaging data: implications for openly sharing synthetic data. 2024. arXiv 2402.01054.",
    "gan-leaks": "Chen D, Yu N, Zhang Y, Fritz M. GAN-Leaks: a taxonomy of membership inference attacks against "
    "generative models. CCS 2020. arXiv 1909.03935.",
    "monte-carlo": "Hilprecht B, Härterich M, Bernau D. Monte Carlo and reconstruction membership inference attacks "
    "against generative models. Proc Priv Enhancing Technol 2019;2019(4):232-249.",
    "nnaa": "Yale A, Dash S, Dutta R, Guyon I, Pavao A, Bennett KP. Generation and evaluation of privacy preserving "
    "synthetic health data. Neurocomputing 2020;416:244-255.",
    "loss-attack": "Matsumoto T, Miura T, Yanai N. Membership inference attacks against diffusion models. 2023. "
    "arXiv 2302.03262.",
    "sima": "Score-based membership inference on diffusion models (SimA). 2025. arXiv 2509.25003.",
    "pia": "Kong F, Duan J, Ma R, et al. An efficient membership inference attack for the diffusion model by proximal "
    "initialization. ICLR 2024. arXiv 2305.18355.",
    "secmi": "Duan J, Kong F, Wang S, Shi X, Xu K. Are diffusion models vulnerable to membership inference attacks? "
    "ICML 2023. arXiv 2302.01316.",
    "calibrated": "Watson L, Guo C, Cormode G, Sablayrolles A. On the importance of difficulty calibration in "
    "membership inference attacks. ICLR 2022. arXiv 2111.08440.",
    "bootstrap": "Efron B, Tibshirani RJ. An introduction to the bootstrap. Chapman & Hall 1993.",
}

_POST_PROCESSING = {
    "largest_component": "Of each structure on a slice the largest piece alone was kept.",
}
_HANDED_OUT = {
    "phantom": "The generators did not draw the data set that was judged: it holds {patients} simulated patients of "
    "the phantom, with their true masks.",
    "relabelled": "The generators did not draw the data set that was judged: it holds {patients} simulated patients of "
    "the phantom, with the masks that the segmenter of the sites gave them.",
}
_LATENT = " on the latents of an autoencoder"
STRATEGIES = {
    "fedavg": ("federated averaging (FedAvg)", "fedavg"),
    "fedprox": ("FedProx", "fedprox"),
    "fedavgm": ("FedAvg with server momentum", "fedavgm"),
    "fedadam": ("FedAdam", "fedopt"),
    "fedyogi": ("FedYogi", "fedopt"),
    "trimmed-mean": ("a trimmed mean", "trimmed-mean"),
    "krum": ("Krum", "krum"),
}
_SAMPLER_SOURCES = {"ddim": ["ddim"], "dpm++": ["dpm++"], "dpm++-karras": ["dpm++", "heun"], "heun": ["heun"]}
_MEASURES = {
    "fidelity.kid": ("the unbiased polynomial-kernel distance of features (KID)", ("kid",)),
    "fidelity.fid": ("the Fréchet distance of features (FID)", ("fid",)),
    "fidelity.frd": ("the Fréchet distance of radiomic features (FRD)", ("frd",)),
    "fidelity.ssim": ("structural similarity (SSIM)", ("ssim",)),
    "fidelity.ms-ssim": ("multi-scale structural similarity (MS-SSIM)", ("ms-ssim",)),
    "fidelity.precision": ("precision and recall of features", ("precision",)),
    "fidelity.coverage": ("their density and coverage", ("coverage",)),
    "fidelity.lpips": ("learned perceptual similarity (LPIPS)", ("lpips",)),
    "memorisation.distance-ratio": ("distances to the nearest training and hold-out slices", ("memorisation",)),
    "utility.dice": (
        "the Dice overlap per volume of a MONAI U-Net trained on real, synthetic and both",
        ("dice", "monai"),
    ),
    "leakage.auc": (
        "membership inference attacks by patient, each with a control, on distances to the nearest synthetic slices"
        " and their ratios",
        ("gan-leaks", "monte-carlo"),
    ),
    "leakage.adversarial-accuracy": ("adversarial accuracy", ("nnaa",)),
    "utility.hd95": ("the distances of its outlines (HD95, ASSD)", ("surface",)),
    "utility.clinical-error": ("volumes and ejection fractions, with bias and limits of agreement", ("agreement",)),
    "anatomy.differing": ("permutation tests over patients, corrected for their number", ("holm",)),
}
"""Measure → what it is called in the text, and its sources."""


@dataclass(frozen=True)
class Paragraph:
    """Words, and the keys of their sources."""

    text: str
    sources: tuple[str, ...]


def _generator(experiment: dict[str, Any], stage: StageName) -> Paragraph:
    settings = experiment[stage]["generator"]
    kind, sampler = settings["process"]["kind"], settings["sampler"]
    guided = sampler.get("guidance_scale", 1) != 1
    latent = bool(settings.get("autoencoder"))
    family = PROCESSES.get(kind).family.text if kind in PROCESSES else kind
    family += _LATENT if latent else ""
    text = (
        f"{DRAWING[stage].methods_text} {family}, sampled with {sampler['name']} in {sampler['steps']} steps"
        + (f" and classifier-free guidance of {sampler['guidance_scale']}" if guided else "")
        + "."
    )
    done = experiment.get("synthesis", {}).get("mask_post_processing", "none")
    if not DRAWING[stage].learns_images and done != "none":
        text += f" {_POST_PROCESSING.get(done, f'They were post-processed: {done}.')}"
    extra = _SAMPLER_SOURCES.get(sampler["name"], [])
    marks = [*([kind] if kind in PROCESSES else []), *(["latent"] if latent else []), *extra]
    return Paragraph(text, (*marks, *(["guidance"] if guided else [])))


def _federation(experiment: dict[str, Any], sites: int) -> Paragraph:
    name = experiment["federation"]["strategy"]["name"]
    words, source = STRATEGIES.get(name, (name, None))
    training = {stage: experiment[stage]["training"] for stage in DRAWING}
    finetuned = _finetuned(experiment)
    rounds = [f"{t['rounds']} rounds of {t['local_steps']} local steps for the {s}s" for s, t in training.items()]
    done = [text for text, t in zip(rounds, training.values(), strict=True) if t["rounds"]]
    if not done and not finetuned:
        return Paragraph("No site was asked to train: both generators are public, as they were pre-trained.", ())
    others = " and ".join(stage for stage in _OTHERS if experiment.get(stage))
    who = [f"{others} {'were' if ' and ' in others else 'was'}", "generator of one stage was", "generators were"][
        len(done)
    ]
    text = (
        f"The {who} trained at {sites} sites over Flower. Scans stayed at their site; weights travelled. "
        f"The server combined them by {words}: {', '.join([*finetuned, *done])}."
    )
    return Paragraph(text, ("flower", *([source] if source else [])))


_OTHERS = tuple(stage for stage in STAGES if stage not in DRAWING)


def _finetuned(experiment: dict[str, Any]) -> list[str]:
    """How what does not draw was trained at the sites, where it was."""
    training = {stage: experiment[stage]["training"] for stage in _OTHERS if experiment.get(stage)}
    return [f"{t['rounds']} rounds of {t['local_steps']} local steps for the {s}" for s, t in training.items()]


def _relabelled(pretrain: dict[str, Any], sources: Sequence[LearnedFrom]) -> Paragraph:
    text = (
        f"The segmenter was first trained {_on_public_patients(pretrain)}. When the sites had trained it, it labelled "
        "these images again, and the generators were trained on them: what they have learned of the sites' patients is "
        "in those labels."
    )
    return Paragraph(" ".join([text, *_completed(sources)]), ())


def _on_public_patients(pretrain: dict[str, Any]) -> str:
    simulated = f"{pretrain['patients']} simulated patients on {pretrain['scanners']} simulated scanners"
    cohorts = pretrain.get("cohorts") or []
    words = f"on public patients: {simulated}" if cohorts else f"on a phantom alone ({simulated})"
    return words + "".join(f"; {cohort['name']} ({cohort['licence']}, {cohort['source']})" for cohort in cohorts)


def _start(pretrain: dict[str, Any], sources: Sequence[LearnedFrom], *, finetuned: bool) -> Paragraph:
    phantom = _on_public_patients(pretrain)
    started, parts = [stage for stage in DRAWING if pretrain[stage]], []
    if started:
        who, they = ("Both generators were", "they") if len(started) == 2 else (f"The {started[0]} generator was", "it")
        parts.append(f"{who} first trained {phantom}; so {they} began with public weights.")
    if pretrain.get("autoencoder"):
        then = "at the sites after that" if finetuned else "then left as it was: it has learned from no patient"
        parts.append(f"The autoencoder was trained {phantom}, and {then}.")
    return Paragraph(" ".join([*parts, *_completed(sources)]), ())


def _completed(sources: Sequence[LearnedFrom]) -> Iterable[str]:
    """How public masks came to be whole, one sentence for each data set."""
    for source in sources:
        if (done := source.completed) is None:
            continue
        names = " and ".join(done.structures)
        agreed = ", ".join(f"{name} {dice:.2f}" for name, dice in done.agreement.items())
        against = f"; Dice of the segmenter with what was drawn, before it had learned from them: {agreed}"
        yield (
            f"Of {source.patients} patients of {source.name} {names} were filled in "
            f"by a segmenter ({done.pixels:.0%} of pixels, on {done.slices:.0%} of slices{against if agreed else ''})."
        )


_WHITE_BOX = {
    "loss": "loss-attack",
    "sima": "sima",
    "pia": "pia",
    "secmi": "secmi",
    "calibrated-loss": "calibrated",
}
"""Attack on the generator → its source."""


def _white_box(measured: list[Metric]) -> list[Paragraph]:
    made = {m.attack for m in measured if m.key == "leakage.auc" and m.space == "white-box"}
    used = [attack for attack in _WHITE_BOX if attack in made]
    if not used:
        return []
    text = (
        f"The image generator itself was attacked as well, by patient: {', '.join(word('attack', a) for a in used)}; "
        "the control of each is the same generator with untrained weights."
    )
    return [Paragraph(text, tuple(_WHITE_BOX[attack] for attack in used))]


def _metrics(measured: list[Metric]) -> list[Paragraph]:
    keys = {metric.key for metric in measured if metric.space != "white-box"}
    found = [entry for key, entry in _MEASURES.items() if key in keys]
    if not found:
        return _white_box(measured)
    text = "The data set was judged by " + "; ".join(words for words, _ in found) + ". "
    if any(metric.arm in ("site", "site-synthetic") for metric in measured):
        text += "The same U-Net was also trained on the patients of each site alone, and on these with the data set. "
    intervals = "Intervals hold 95 % of the resamples; the tables say over what they were drawn."
    second = any(metric.segmenter is not None for metric in measured)
    text += "nnU-Net was trained on real, synthetic and both too, for as long as the tables say. " if second else ""
    extra = ("nnunet",) if second else ()
    main = Paragraph(text + intervals, (*(key for _, keys in found for key in keys), *extra, "bootstrap"))
    return [main, *_white_box(measured)]


def paragraphs(run: dict[str, Any] | None, measured: Iterable[Metric]) -> list[Paragraph]:
    """What was done, in the order in which it was done; nothing is said of what was not.

    Args:
        run: Content of run.json, or None when only an evaluation is reported.
        measured: The metrics that have a value.
    """
    out = []
    if run is not None:
        experiment = run["experiment"]
        out += [_generator(experiment, stage) for stage in DRAWING]
        if experiment.get("pretrain"):
            sources = [LearnedFrom.model_validate(each) for each in run.get("learned_from") or []]
            start = _start(experiment["pretrain"], sources, finetuned=bool(experiment.get("autoencoder")))
            out += [_relabelled(experiment["pretrain"], sources) if experiment.get("segmenter") else start]
        out += [_federation(experiment, len(run.get("sites") or []))]
        if words := _HANDED_OUT.get(experiment.get("synthesis", {}).get("source")):
            out += [Paragraph(words.format(patients=experiment["synthesis"]["patients"]), ())]
        if plugins := [str(PluginEntry(**entry)) for entry in run.get("plugins") or []]:
            out += [Paragraph(f"CMRFed was extended by plugins: {'; '.join(plugins)}.", ())]
    return [*out, *_metrics(list(measured))]


def bibliography(used: Iterable[Paragraph]) -> tuple[dict[str, int], list[str]]:
    """Number the sources in order of first use: key → number, and their texts in that order."""
    numbers: dict[str, int] = {}
    for paragraph in used:
        for key in paragraph.sources:
            numbers.setdefault(key, len(numbers) + 1)
    return numbers, [SOURCES.get(key) or PROCESSES.get(key).family.source for key in numbers]
