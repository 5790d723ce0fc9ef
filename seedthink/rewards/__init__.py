"""Verifiers that check answers, and the judges that run them: in killable processes, or in this one."""
