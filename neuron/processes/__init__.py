"""Worker processes and groups of them: started, watched, ended, reaped."""
