"""The daemon on each GPU host: discovery, memory ledger, model lifecycle, worker groups, text front end."""
