"""Certificates: proofs that no image of a ball is misclassified, for networks of piecewise linear layers.

A certificate covers the ball with the judge's tolerance, and the float32 arithmetic of the network in whatever order sums are
taken.
"""

from kwbench.certification.certificate import Certificate, certify
from kwbench.certification.graph import trace

__all__ = ["Certificate", "certify", "trace"]
