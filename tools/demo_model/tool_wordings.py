"""How users ask for what a tool can do, and the names that tools and parameters go by."""

from __future__ import annotations

from tools.demo_model import words

# kind of parameter -> names it goes by, in the order of likelihood
PARAMETERS = {
    "city": ("city", "location", "place", "town", "city_name"),
    "item": ("item", "product", "name", "query", "article", "thing"),
    "person": ("name", "person", "user", "recipient", "to"),
    "day": ("day", "date", "when"),
    "count": ("count", "number", "amount", "quantity", "n", "people", "limit"),
    "code": ("id", "code", "key", "order_id", "number"),
    "text": ("text", "query", "message", "title", "content", "note"),
    "language": ("language", "target", "to", "target_language"),
    "symbol": ("symbol", "ticker", "stock"),
    "path": ("path", "file", "filename", "file_path"),
    "command": ("command", "cmd", "script", "line"),
}

DAYS = ("today", "tomorrow", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

COMMANDS = (
    "ls",
    "pwd",
    "date",
    "whoami",
    "ls -la",
    "git status",
    "git log",
    "make test",
    "cat {n}.txt",
    "cd {n}",
    "rm {n}",
    "python {n}.py",
    "echo {n}",
    "{n}",
    "{n} --{n}",
)

LOOK_UP_VERBS = (
    "get",
    "find",
    "look_up",
    "fetch",
    "search",
    "check",
    "query",
    "show",
    "read",
    "lookup",
    "list",
)

LOOK_UP_DESCRIPTIONS = (
    "",
    "Get the {n} of a {p}.",
    "Get the {n} for a {k}",
    "Returns the current {n}.",
    "Look up the {n}.",
    "Find the {n} of a {k} by its {p}.",
)

LOOK_UP = (
    "What is the {n} {p} {v}?",
    "What is the {n} {p} {v}?",
    "What's the {n} {p} {v}?",
    "What is the {n} like {p} {v}?",
    "What's the {n} like {p} {v}?",
    "How is the {n} {p} {v}?",
    "Please look up the {n} {p} {v}.",
    "Look up the {n} {p} {v}.",
    "Can you look up the {n} {p} {v}?",
    "Can you tell me the {n} {p} {v}?",
    "Could you find the {n} {p} {v}?",
    "Find the {n} {p} {v}.",
    "Get the {n} {p} {v}.",
    "Get me the {n} {p} {v}.",
    "Please get the {n} {p} {v}.",
    "Check the {n} {p} {v}.",
    "Please check the {n} {p} {v}.",
    "Show me the {n} {p} {v}.",
    "Give me the {n} {p} {v}.",
    "Tell me the {n} {p} {v}.",
    "I need the {n} {p} {v}.",
    "I need to know the {n} {p} {v}.",
    "I want to know the {n} {p} {v}.",
    "Do you know the {n} {p} {v}?",
    "Search the {n} {p} {v}.",
    "{v}: what is the {n}?",
    "{n} {p} {v}?",
    "{n} {p} {v}",
    "{v} {n}",
)

PREPOSITIONS = ("of", "of", "in", "for", "at", "from")

ACTION_VERBS = words.listed("""
    open close start stop play send set create delete book order buy run add remove save call print move
    copy turn load rename
""")

ACTIONS = (
    "{a} the {n} {v}.",
    "Please {a} the {n} {v}.",
    "{a} {n} {v}",
    "Can you {a} the {n} {v}?",
    "Could you {a} a {n} for {v}?",
    "{a} a {n} for {v}.",
    "{a} a {n} called {v}.",
    "{a} the {n} to {v}.",
    "I want to {a} the {n} {v}.",
    "Please {a} a {n} named {v}.",
    "{a} {v} with the {n}.",
    "Would you {a} the {n} for {v}?",
)

NAMED = (
    "Call {f} with {args}.",
    "Please call {f} with {args}.",
    "Use {f} with {args}.",
    "Use the tool {f} with {args}.",
    "Run {f} with {args}.",
    "Please use {f} for {args}.",
    "Can you run {f} with {args}?",
    "{f} with {args}",
    "Please {f} with {args}.",
)

# What people really try: (names, description, parameters as name -> kind, sentences)
REAL: dict[str, tuple[tuple[str, ...], str, dict[str, str], tuple[str, ...]]] = {
    "weather": (
        ("get_weather", "get_current_weather", "weather", "weather_lookup", "fetch_weather"),
        "Get the current weather in a city.",
        {"city": "city"},
        (
            "What is the weather in {city}?",
            "What's the weather like in {city}?",
            "How is the weather in {city} today?",
            "Is it raining in {city}?",
            "Will it rain in {city} today?",
            "How warm is it in {city}?",
            "What is the temperature in {city}?",
            "Is it cold in {city}?",
            "Tell me the weather in {city}.",
            "Weather in {city}?",
            "What is the weather like in {city} right now?",
            "Do I need an umbrella in {city}?",
            "Is it sunny in {city}?",
            "How hot is it in {city} right now?",
        ),
    ),
    "forecast": (
        ("get_weather", "weather_forecast", "forecast"),
        "Get the weather forecast for a city and a day.",
        {"city": "city", "day": "day"},
        (
            "What will the weather be in {city} on {day}?",
            "Will it rain in {city} on {day}?",
            "What is the weather in {city} {day}?",
            "Forecast for {city} on {day}, please.",
            "On {day}, how is the weather in {city}?",
        ),
    ),
    "price": (
        ("get_price", "price_lookup", "find_price", "lookup_price"),
        "Look up the price of an item.",
        {"item": "item"},
        (
            "How much are {item}?",
            "How much do {item} cost?",
            "What do {item} cost?",
            "What is the price of {item}?",
            "Please look up the price of {item}.",
            "Price of {item}?",
            "Are {item} expensive?",
        ),
    ),
    "time": (
        ("get_time", "current_time", "world_clock", "get_current_time"),
        "Get the current time in a city.",
        {"city": "city"},
        (
            "What time is it in {city}?",
            "What is the time in {city}?",
            "How late is it in {city}?",
            "Tell me the time in {city}.",
            "What time is it now in {city}?",
        ),
    ),
    "search": (
        ("search", "web_search", "search_web", "google"),
        "Search the web.",
        {"query": "text"},
        (
            "Search for {query}.",
            "Search the web for {query}.",
            "Please search for {query}.",
            "Look for {query} on the web.",
            "Google {query}.",
            "Find something about {query}.",
            "Can you search for {query}?",
            "Search {query}",
        ),
    ),
    "translate": (
        ("translate", "translate_text"),
        "Translate a text.",
        {"text": "text", "language": "language"},
        (
            "Translate {text} to {language}.",
            "Translate {text} into {language}.",
            "How do you say {text} in {language}?",
            "Please translate {text} to {language}.",
        ),
    ),
    "table": (
        ("book_table", "reserve_table", "make_reservation"),
        "Book a table in a restaurant.",
        {"city": "city", "people": "count"},
        (
            "Book a table in {city} for {people}.",
            "Book a table for {people} in {city}.",
            "Reserve a table for {people} people in {city}.",
            "I need a table in {city} for {people} people.",
        ),
    ),
    "message": (
        ("send_message", "send_email", "send_mail"),
        "Send a message to someone.",
        {"to": "person", "text": "text"},
        (
            "Send {to} the message {text}.",
            "Write to {to}: {text}",
            "Tell {to} {text}.",
            "Send a message to {to}: {text}",
            "Send an email to {to} saying {text}.",
        ),
    ),
    "timer": (
        ("set_timer", "start_timer", "timer"),
        "Set a timer.",
        {"minutes": "count"},
        (
            "Set a timer for {minutes} minutes.",
            "Start a timer of {minutes} minutes.",
            "Wake me in {minutes} minutes.",
            "Timer for {minutes} minutes, please.",
            "Set the timer to {minutes}.",
        ),
    ),
    "population": (
        ("get_population", "population"),
        "Get the population of a city.",
        {"city": "city"},
        ("How many people live in {city}?", "What is the population of {city}?", "How big is {city}?"),
    ),
    "distance": (
        ("get_distance", "distance"),
        "Get the distance between two places.",
        {"from": "city", "to": "city"},
        (
            "How far is it from {from} to {to}?",
            "What is the distance from {from} to {to}?",
            "How far is {from} from {to}?",
            "Distance between {from} and {to}?",
        ),
    ),
    "play": (
        ("play_song", "play_music", "play"),
        "Play a song.",
        {"title": "text"},
        ("Play {title}.", "Please play {title}.", "Play the song {title}.", "I want to hear {title}."),
    ),
    "file": (
        ("read_file", "open_file", "cat", "Read"),
        "Read a file.",
        {"path": "path"},
        (
            "Read {path}.",
            "Open {path}.",
            "Show me the file {path}.",
            "What is in {path}?",
            "Please read the file {path}.",
        ),
    ),
    "stock": (
        ("get_stock_price", "stock_price", "get_stock"),
        "Get the stock price for a symbol.",
        {"symbol": "symbol"},
        (
            "What is the stock price of {symbol}?",
            "How is {symbol} doing?",
            "Stock price of {symbol}?",
            "What does {symbol} trade at?",
        ),
    ),
    "flight": (
        ("search_flights", "find_flights", "book_flight", "flights"),
        "Search for flights between two places.",
        {"origin": "city", "destination": "city"},
        (
            "Find flights from {origin} to {destination}.",
            "Find a flight from {origin} to {destination}.",
            "Search for flights from {origin} to {destination}.",
            "I want to fly from {origin} to {destination}.",
            "Flights from {origin} to {destination}",
            "Is there a flight from {origin} to {destination}?",
        ),
    ),
    "command": (
        ("run_command", "bash", "Bash", "shell", "execute", "run_shell"),
        "Run a shell command.",
        {"command": "command"},
        (
            "Run {command}",
            "Run the command {command}",
            "Please run {command}",
            "Execute {command}",
            "Can you run {command} for me?",
            "Run {command} in the shell",
        ),
    ),
    "capital": (
        ("get_capital", "capital", "capital_of"),
        "Get the capital of a country.",
        {"country": "city"},
        ("What is the capital of {country}?", "Capital of {country}?", "Tell me the capital of {country}."),
    ),
    "multiply": (
        ("multiply", "times", "product"),
        "Multiply two integers.",
        {"a": "count", "b": "count"},
        ("Multiply {a} by {b}.", "Multiply {a} and {b}.", "What is {a} times {b}?", "What is {a} * {b}?"),
    ),
    "alarm": (
        ("set_alarm", "alarm", "create_alarm"),
        "Set an alarm.",
        {"hour": "count"},
        (
            "Set an alarm for {hour}.",
            "Wake me at {hour}.",
            "Set the alarm to {hour}.",
            "Alarm at {hour}, please.",
        ),
    ),
    "two numbers": (
        ("add", "add_numbers", "sum", "calculator", "plus"),
        "Add two numbers.",
        {"a": "count", "b": "count"},
        (
            "What is {a} + {b}?",
            "Add {a} and {b}.",
            "{a} + {b}",
            "What is {a} plus {b}?",
            "How much is {a} + {b}?",
        ),
    ),
}

UNITS = (
    "C",
    "F",
    "km",
    "kg",
    "EUR",
    "USD",
    "%",
    "degrees",
    "m",
    "litres",
    "minutes",
    "points",
    "euro",
    "dollars",
)

RESULT_KEYS = words.listed("""
    temperature unit price currency status value count time name result city total state message date
    humidity wind id
""")
