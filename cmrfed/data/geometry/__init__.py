"""How a scan lies in the patient: affines, orientation, and masks brought onto their images."""
