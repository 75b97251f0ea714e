"""A measured check of the private step, two-sided: what it releases is what it promises, no more noise and no less."""

from cmrfed.privacy.audit.checks import FALSE_ALARM, Check
from cmrfed.privacy.audit.result import AuditResult, AuditRow
from cmrfed.privacy.audit.run import audit

__all__ = ["FALSE_ALARM", "AuditResult", "AuditRow", "Check", "audit"]
