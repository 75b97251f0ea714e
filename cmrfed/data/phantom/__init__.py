"""A phantom of short-axis cine cardiac MRI: no patient was scanned for it, and its volumes are known."""

from cmrfed.data.phantom.write import (
    PhantomVolume,
    phantom_patient,
    style_of,
    write_phantom,
)

__all__ = ["PhantomVolume", "phantom_patient", "style_of", "write_phantom"]
