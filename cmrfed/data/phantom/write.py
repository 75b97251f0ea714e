"""A phantom cohort on disk, in the layout of ACDC, one folder for each site."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from cmrfed.core.artifacts import new_folder, write_json, write_text
from cmrfed.core.errors import ConfigError
from cmrfed.core.progress import track
from cmrfed.core.rng import numpy_generator
from cmrfed.data.geometry.affine import short_axis_affine
from cmrfed.data.labels import Phase
from cmrfed.data.phantom.anatomy import GROUPS, draw_heart
from cmrfed.data.phantom.render import render
from cmrfed.data.phantom.signal import ScannerStyle, site_style
from cmrfed.data.settings import PhantomConfig

SPECIALTY = 3.0
"""How much more often a site sees the two groups that it is known for."""


@dataclass(frozen=True)
class PhantomVolume:
    """One phase as scanned: image int16 (Z, H, W), non-negative; mask uint8 (Z, H, W); spacing row, column, slice."""

    phase: Phase
    image: np.ndarray
    mask: np.ndarray
    spacing_mm: tuple[float, float, float]


def style_of(config: PhantomConfig, site: int) -> ScannerStyle:
    """Scanner style of a site of a phantom cohort."""
    return site_style(site, start=float(numpy_generator(config.seed, "phantom style").random()))


def _patient_style(style: ScannerStyle, rng: np.random.Generator) -> ScannerStyle:
    """Vary what the operator sets or the patient's size decides."""
    return replace(
        style,
        flip_deg=style.flip_deg * rng.normal(1, 0.06),
        snr=style.snr * rng.lognormal(0, 0.25),
        blur_px=max(style.blur_px * rng.normal(1, 0.2), 0.2),
        coil_falloff=max(style.coil_falloff * rng.normal(1, 0.35), 0.0),
    )


def _group(site: int, rng: np.random.Generator) -> str:
    weights = np.ones(len(GROUPS))
    weights[[(2 * site) % len(GROUPS), (2 * site + 1) % len(GROUPS)]] = SPECIALTY
    return str(rng.choice(GROUPS, p=weights / weights.sum()))


def phantom_patient(
    config: PhantomConfig, site: int, number: int
) -> tuple[tuple[PhantomVolume, ...], dict[str, float | str | int]]:
    """Make one patient; a pure function of its arguments.

    Args:
        config: Only the seed matters here.
        site: Number of the site from 0: decides scanner style and prevalence of the groups.
        number: Number of the patient, unique over the sites.

    Returns:
        ED and ES volumes, and the truth: volumes in ml, mass in g and ejection fractions of the geometry.
    """
    rng = numpy_generator(config.seed, "phantom patient", site, number)
    heart = draw_heart(_group(site, rng), rng)
    plan, scans = render(heart, _patient_style(style_of(config, site), rng), rng)
    spacing = (round(plan.pixel_mm, 4), round(plan.pixel_mm, 4), plan.slice_mm)
    gain = float(rng.uniform(150, 600))
    volumes = tuple(
        PhantomVolume(phase, np.minimum(image * gain, 32767).astype(np.int16), mask, spacing)
        for phase, (image, mask) in scans.items()
    )
    return volumes, {"patient": f"patient{number:03d}", "site": site, **heart.truth()}


def write_phantom(out: Path, config: PhantomConfig) -> None:
    """Write ``OUT/site-0/patient001/...``; the folder appears only when it is whole.

    Each patient has two frames with masks and Info.cfg as in ACDC, and truth.json; each site has style.json.

    Raises:
        ConfigError: There are fewer patients than sites, or OUT is a folder that holds something.
    """
    if config.patients < config.sites:
        raise ConfigError(
            "a site without patients",
            got=f"{config.patients} patient(s) for {config.sites} sites",
            expected="at least one patient for each site",
            do="raise --patients or lower --sites",
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty", do="name a new folder, or remove this one yourself")
    with new_folder(out) as part, track("phantom", config.patients) as progress:
        for site in range(config.sites):
            write_json(part / f"site-{site}" / "style.json", asdict(style_of(config, site)))
        for i in range(config.patients):
            site, number = i * config.sites // config.patients, i + 1
            _write_patient(part / f"site-{site}" / f"patient{number:03d}", *phantom_patient(config, site, number))
            progress.advance()


def _write_patient(folder: Path, volumes: tuple[PhantomVolume, ...], truth: dict[str, float | str | int]) -> None:
    folder.mkdir(parents=True)
    frames = 30
    number = {Phase.ED: 1, Phase.ES: 9 + int(str(truth["patient"])[-3:]) % 5}
    for volume in volumes:
        affine = short_axis_affine(volume.spacing_mm, volume.mask.shape)
        stem = folder / f"{folder.name}_frame{number[volume.phase]:02d}"
        for array, ending in ((volume.image, ""), (volume.mask, "_gt")):
            file = nib.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0)), affine)
            file.header.set_xyzt_units("mm", "sec")
            nib.save(file, f"{stem}{ending}.nii.gz")
    lines = {"ED": number[Phase.ED], "ES": number[Phase.ES], "Group": truth["group"], "NbFrame": frames}
    write_text(folder / "Info.cfg", "".join(f"{key}: {value}\n" for key, value in lines.items()))
    write_json(folder / "truth.json", truth)
