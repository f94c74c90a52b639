"""What all tests share: no example of a property test fails for being slow, because no test measures time."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile("probekit", deadline=None)
hypothesis.settings.load_profile("probekit")
