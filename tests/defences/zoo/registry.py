"""All defences of the zoo.

The image defences of Tramer et al. 2020 (arXiv:2002.08347), the self-study course of Carlini et al. 2021
(github.com/google-research/selfstudy-adversarial-robustness), and others, each re-implemented in short form on digits. Of the
thirteen defences of Tramer et al. temporal dependency (arXiv:1809.10875) is about audio, and not here.
"""

from defences.zoo.activations import ACTIVATIONS
from defences.zoo.defence import Defence
from defences.zoo.detectors import DETECTORS
from defences.zoo.ensembles import ENSEMBLES
from defences.zoo.inputs import INPUTS
from defences.zoo.outputs import OUTPUTS
from defences.zoo.purification import PURIFICATION
from defences.zoo.random_inputs import RANDOM_INPUTS

DEFENCES: tuple[Defence, ...] = (
    *ACTIVATIONS,
    *INPUTS,
    *RANDOM_INPUTS,
    *PURIFICATION,
    *OUTPUTS,
    *ENSEMBLES,
    *DETECTORS,
)
