"""What all tests share: no example of a property test fails for being slow, because no test measures time.

Where CI is set hypothesis would take the same examples in every run; here it draws new ones there too.
"""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile("probekit", deadline=None, derandomize=False)
hypothesis.settings.load_profile("probekit")
