"""Commands on scans and cohorts: phantom, prepare, verify, and where public ones are had."""

from pathlib import Path
from typing import Annotated

import typer

from cmrfed.cli.options import Force, refuse_to_replace
from cmrfed.core.processes import loading
from cmrfed.core.progress import say


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(epilog="Example: cmrfed phantom out/scans --patients 12 --sites 3 --seed 0")(phantom)
    app.command(epilog="Example: cmrfed prepare data/acdc cohorts/acdc --source acdc")(prepare)
    app.command(epilog="Example: cmrfed verify data/acdc")(verify)
    app.command("fetch-public", epilog="Example: cmrfed fetch-public sunnybrook")(fetch_public)


def phantom(
    out: Annotated[Path, typer.Argument(help="Folder for the scans: one folder per site, in ACDC's layout.")],
    patients: Annotated[int, typer.Option(min=1, help="Total number of patients.")] = 24,
    sites: Annotated[int, typer.Option(min=1, help="Number of sites, each with its own simulated scanner.")] = 3,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    force: Force = False,
) -> None:
    """Simulate cardiac MRI scans of a numerical phantom with known volumes."""
    with loading(for_good=True):
        from cmrfed.data.phantom import write_phantom
        from cmrfed.data.settings import PhantomConfig

    refuse_to_replace(out, force)
    write_phantom(out, PhantomConfig(patients=patients, sites=sites, seed=seed))
    say(f"{patients} patients at {sites} site(s): {out}")


def prepare(
    src: Annotated[Path, typer.Argument(help="The data set as downloaded.")],
    out: Annotated[Path, typer.Argument(help="The cohort folder to write.")],
    source: Annotated[str, typer.Option(help="acdc, mnms, mnms2, nnunet or dicom, or that of a plugin.")],
    size: Annotated[int, typer.Option(min=16, help="Height and width of the slices, in pixels.")] = 64,
    field_mm: Annotated[
        float, typer.Option(help="Field of view around the heart in mm, where the pixel spacing is known.")
    ] = 180.0,
    field_px: Annotated[
        int, typer.Option(help="Field of view in pixels of the scan, where the spacing is unknown.")
    ] = 128,
    name: Annotated[str | None, typer.Option(help="Name of the cohort; defaults to that of the folder.")] = None,
    strict: Annotated[bool, typer.Option(help="Stop at the first unusable file instead of setting it aside.")] = False,
    key: Annotated[
        Path | None, typer.Option(help="DICOM: file with the key of patients' names, made if absent; default OUT.key.")
    ] = None,
    force: Force = False,
) -> None:
    """Prepare scans as a cohort: canonical labels, a common field of view, intensities in [-1, 1]."""
    with loading(for_good=True):
        from cmrfed.data.preparation.prepare import PrepareConfig
        from cmrfed.data.preparation.prepare import prepare as prepare_cohort

    refuse_to_replace(out, force)
    config = PrepareConfig(size_px=size, field_mm=field_mm, field_px=field_px)
    cohort = prepare_cohort(src, out, source, config, name=name or out.name, strict=strict, key=key)
    say(f"cohort {cohort.name}: {len(cohort)} patients, {len(cohort.rows)} slices: {out}")


def verify(
    path: Annotated[
        list[Path], typer.Argument(help="Scans or cohort folders; duplicates are detected across all of them.")
    ],
    source: Annotated[str | None, typer.Option(help="Layout of the scans; detected by default.")] = None,
    strict: Annotated[bool, typer.Option(help="Exit with an error if any problem is found.")] = False,
) -> None:
    """Check scans or cohorts and report why files cannot be used."""
    with loading(for_good=True):
        from cmrfed.data.preparation.verify import verify_many

    print(verify_many(path, source, strict=strict).text())


def fetch_public(
    name: Annotated[list[str] | None, typer.Argument(help="Data sets to tell of; all by default.")] = None,
) -> None:
    """Tell where public data sets are had, under which terms, and what follows. Downloads nothing."""
    from cmrfed.core.errors import ConfigError
    from cmrfed.data.public_sets import SETS, in_words

    known = {one.key: one for one in SETS}
    if unknown := [each for each in name or () if each not in known]:
        raise ConfigError("no such public data set", got=", ".join(unknown), expected=", ".join(known))
    print("\n\n".join(in_words(known[each]) for each in name or known))
    print("\nNothing was downloaded: the owners decide who gets the data, and what their page says goes before this.")
