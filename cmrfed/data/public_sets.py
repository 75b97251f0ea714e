"""Public data sets of cardiac MRI: where they are had, under which terms, what is labelled, and how they are prepared.

Nothing is downloaded: terms are accepted by who needs the data. What is written here is a pointer; the page of the
owners decides.
"""

from dataclasses import dataclass

UNSURE = "read on the page before use"


@dataclass(frozen=True)
class PublicSet:
    """One data set.

    terms: the licence where the owners name one, or what has to be read or signed. labels: structures with masks.
    prepare: the source of `cmrfed prepare`; None where scans have to be brought into a known layout first, which
    ``remark`` says.
    """

    key: str
    name: str
    patients: str
    labels: str
    terms: str
    place: str
    citation: str
    prepare: str | None
    remark: str = ""

    @property
    def command(self) -> str:
        """What prepares it, or what has to be done before."""
        if self.prepare is None:
            return self.remark
        return f"cmrfed prepare data/{self.key} cohorts/{self.key} --source {self.prepare}"


SETS = (
    PublicSet(
        "sunnybrook", "Sunnybrook Cardiac Data", "45", "LV cavity",
        "CC0-1.0 (public domain)",
        "https://www.cardiacatlas.org/sunnybrook-cardiac-data/",
        "Radau et al., MIDAS Journal 2009, hdl.handle.net/10380/3070",
        None,
        "DICOM, contours as text: write ED and ES as NIfTI in ACDC's layout, LV cavity as label 3, then --source acdc",
    ),
    PublicSet(
        "acdc", "ACDC", "150", "LV cavity, myocardium, RV cavity",
        "CC BY-NC-SA 4.0: research, not commercial, citation",
        "https://www.creatis.insa-lyon.fr/Challenge/acdc/databases.html",
        "Bernard et al., IEEE TMI 2018, doi 10.1109/TMI.2018.2837502",
        "acdc",
    ),
    PublicSet(
        "mnms", "M&Ms", "375", "LV cavity, myocardium, RV cavity",
        f"registration; {UNSURE}",
        "https://www.ub.edu/mnms/",
        "Campello et al., IEEE TMI 2021, doi 10.1109/TMI.2021.3090082",
        "mnms",
    ),
    PublicSet(
        "mnms2", "M&Ms-2", "360", "LV cavity, myocardium, RV cavity",
        f"registration; {UNSURE}",
        "https://www.ub.edu/mnms-2/",
        "Martín-Isla et al., IEEE JBHI 2023, doi 10.1109/JBHI.2023.3267857",
        "mnms2",
    ),
    PublicSet(
        "kaggle-dsb", "Kaggle Second Annual Data Science Bowl", "1140", "none; LV volumes at ED and ES",
        f"rules of the competition, accepted with a Kaggle account; {UNSURE}",
        "https://www.kaggle.com/c/second-annual-data-science-bowl/data",
        "Kaggle and Booz Allen Hamilton, 2015",
        None,
        "DICOM without masks: --source dicom makes a cohort without masks of it",
    ),
    PublicSet(
        "uk-biobank", "UK Biobank, cardiac imaging", "by application", "none with the images",
        "application, fee and a material transfer agreement, which binds what is made from the data too",
        "https://www.ukbiobank.ac.uk/use-our-data/",
        "Petersen et al., JCMR 2016, doi 10.1186/s12968-016-0227-4",
        None,
        "DICOM without masks: --source dicom makes a cohort without masks of it. Not public in the sense of "
        "pretrain.cohorts: participants are promised that access is controlled",
    ),
)  # fmt: skip
"""Where to look, in the order of how freely they may be used."""


def table() -> str:
    """All data sets as a table in Markdown."""
    head = "| data set | patients | masks of | terms | where | then |\n| --- | --- | --- | --- | --- | --- |"
    rows = [
        f"| {s.name} | {s.patients} | {s.labels} | {s.terms} | {s.place} | "
        f"{f'`{s.command}`' if s.prepare else s.command} |"
        for s in SETS
    ]
    return "\n".join([head, *rows])


def in_words(one: PublicSet) -> str:
    """One data set in full, for the terminal: with what a recipe says of it."""
    return "\n".join(
        [
            f"{one.name} ({one.key})",
            f"  patients  {one.patients}",
            f"  masks of  {one.labels}",
            f"  terms     {one.terms}",
            f"  where     {one.place}",
            f"  to cite   {one.citation}",
            f"  then      {one.command}",
        ]
    )
