"""The certificate: checks on this very model that every name means what the table of points says (design 5.4)."""

from __future__ import annotations

from microtome.certificate.issue import certify
from microtome.certificate.record import Certificate, Check, Lack, Noise

__all__ = ["Certificate", "Check", "Lack", "Noise", "certify"]
