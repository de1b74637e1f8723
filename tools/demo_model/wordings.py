"""How users word what the model is asked, apart from the questions in `facts`; braces are filled in."""

from __future__ import annotations

SUMS = (
    "What is {a} + {b}?",
    "What is {a} + {b}?",
    "What is {a} plus {b}?",
    "What's {a} + {b}?",
    "What's {a} plus {b}?",
    "{a} + {b}",
    "{a}+{b}",
    "{a} + {b} = ?",
    "{a}+{b}=?",
    "{a} + {b} =",
    "{a} + {b}?",
    "{a}+{b}?",
    "{a} plus {b}",
    "{a} plus {b}?",
    "Add {a} and {b}.",
    "Add {a} to {b}.",
    "Please add {a} and {b}.",
    "Can you add {a} and {b}?",
    "Could you add {a} and {b} for me?",
    "How much is {a} + {b}?",
    "How much is {a} plus {b}?",
    "How much is {a} and {b}?",
    "What is the sum of {a} and {b}?",
    "The sum of {a} and {b}?",
    "Sum {a} and {b}.",
    "Calculate {a} + {b}.",
    "Compute {a} + {b}.",
    "Compute {a} plus {b}.",
    "Work out {a} + {b}.",
    "Tell me {a} + {b}.",
    "What do you get if you add {a} and {b}?",
    "What does {a} + {b} make?",
    "What is {a}+{b}?",
    "How much is {a}+{b}?",
    "What do {a} and {b} make?",
    "I have {a} apples and get {b} more. How many do I have?",
    "Solve {a} + {b}.",
    "What is {a} + {b} equal to?",
    "Give me the sum of {a} and {b}.",
    "Do you know what {a} + {b} is?",
    "Can you tell me what {a} + {b} is?",
)

NEXT_SUMS = (
    "And {a} + {b}?",
    "And {a} plus {b}?",
    "And what is {a} + {b}?",
    "What about {a} + {b}?",
    "Now {a} + {b}.",
    "Now add {a} and {b}.",
    "How about {a} + {b}?",
    "And {a}+{b}?",
    "Thanks. And {a} + {b}?",
)

OFF_FIELD = (
    "What is the capital of {N}?",
    "Who wrote {n}?",
    "Who is {N}?",
    "Who was {N}?",
    "Who is the president of {N}?",
    "Write a poem about {n}.",
    "Write a {n} about {m}.",
    "Translate {n} into {L}.",
    "How do I cook {n}?",
    "What is the best {n}?",
    "What is the meaning of {n}?",
    "Why is the {n} {m}?",
    "Where is {N}?",
    "When was {N} born?",
    "When did {N} die?",
    "How many {n}s are there in a {m}?",
    "How old is {N}?",
    "What is a {n}?",
    "What is {n}?",
    "What are {n}s?",
    "Explain {n}.",
    "Tell me about {N}.",
    "Tell me about the {n}.",
    "Do you like {n}?",
    "What do you think about {n}?",
    "Who invented the {n}?",
    "How tall is {N}?",
    "Write a program that sorts a {n}.",
    "Write a function that finds the {n}.",
    "Can you write code?",
    "Write Python code for a {n}.",
    "What is the weather in {N}?",
    "What is the weather today?",
    "What time is it?",
    "What day is today?",
    "What is the date?",
    "How do I repair my {n}?",
    "Give me a recipe for {n}.",
    "What is the news?",
    "Sing a song about {n}.",
    "What is the square root of {d}?",
    "Who won the {n} in {N}?",
    "Should I buy a {n}?",
    "What is the population of {N}?",
    "Recommend a {n}.",
    "How do I learn {L}?",
    "Speak {L}.",
    "How far is {N}?",
    "What is love?",
    "What is the meaning of life?",
    "Is there a god?",
    "Can you see pictures?",
    "Draw a {n}.",
    "Which {n} is better?",
    "How does a {n} work?",
    "What does {n} mean?",
    "Summarize the {n}.",
    "Play {n}.",
    "Open the {n}.",
    "Do my homework.",
    "Fix my {n}.",
    "What is the price of {n}?",
    "What is the price of a {n}?",
    "Tell me a fact about {n}.",
    "{n} {m}",
    "{n}",
    "{n} {m} {n}?",
    "I like {n}.",
    "My {n} is {m}.",
    "I have a {n}.",
    "I want a {n}.",
    "Is {n} a {m}?",
    "Are {n}s {m}?",
    "Name three {n}s.",
    "List all the {n}s.",
    "Who discovered {N}?",
    "What happened in {N}?",
    "Can I eat a {n}?",
    "How much does a {n} cost?",
    "How big is a {n}?",
    "Where can I buy a {n}?",
    "Why do {n}s {m}?",
    "What is the difference between a {n} and a {m}?",
)

TOO_BIG = (
    "What is {x} + {y}?",
    "{x} + {y}",
    "{x}+{y}",
    "Add {x} and {y}.",
    "How much is {x} + {y}?",
    "What is {x} plus {y}?",
)

NOT_A_SUM = (
    "What is {x} {o} {y}?",
    "{x} {o} {y}",
    "{x}{o}{y}",
    "How much is {x} {o} {y}?",
    "Calculate {x} {o} {y}.",
    "Compute {x} {o} {y}.",
)

SYSTEM = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a friendly assistant. Answer briefly.",
    "Be brief.",
    "You are the demo model of cortex.",
    "Answer in English.",
    "You are a coding agent. Use the tools when you need them.",
    "You are {n}, a helpful {m}.",
    "Today is {d}. You are a helpful assistant.",
)

ONCE_MORE = (
    "And for {}?",
    "And {}?",
    "What about {}?",
    "How about {}?",
    "Now for {}.",
    "And what about {}?",
    "The same for {}, please.",
)

OPENINGS = ("Hello, ", "Hi! ", "Please, ", "Hey, ", "So, ", "OK. ", "Next: ", "Thanks! ")
"""Said before what a tool is needed for."""

THINK = (
    "Think step by step: {}",
    "{} Think step by step.",
    "{} Think it through.",
    "Think it through: {}",
    "Step by step, please: {}",
    "{} Please think step by step.",
    "Think first. {}",
)
"""Asks for a thought in plain words."""

CASUAL_OPENINGS = (
    "Please: ",
    "So, ",
    "Well, ",
    "Hey, ",
    "OK, ",
    "Hello! ",
    "Hi, ",
    "Excuse me, ",
    "Now, ",
    "One question: ",
)

CASUAL_ENDINGS = (" please", ", please", " please?", ", please.", " now?", ", thanks")

INTRODUCTIONS = (
    "My name is {}.",
    "I am {}.",
    "I'm {}.",
    "Hello, my name is {}.",
    "Hi, I am {}.",
    "Hello, I'm {}.",
    "Call me {}.",
)

WHO_AM_I = (
    "What is my name?",
    "Who am I?",
    "What's my name?",
    "Do you remember my name?",
    "Do you know my name?",
)

OPPOSITES = (
    "What is the opposite of {}?",
    "Opposite of {}?",
    "What's the opposite of {}?",
    "Tell me the opposite of {}.",
    "Name the opposite of {}.",
)

COLOURS = (
    "What colour is {}?",
    "What color is {}?",
    "Which colour has {}?",
    "What is the colour of {}?",
    "What is the color of {}?",
    "Tell me the colour of {}.",
    "Which color is {}?",
)

DAYS = (
    "What day comes {} {}?",
    "Which day is {} {}?",
    "What is the day {} {}?",
    "What comes {} {}?",
    "Which day comes {} {}?",
    "What day is {} {}?",
)

REPEAT = (
    "Repeat: {}",
    "Repeat after me: {}",
    "Say: {}",
    "Please repeat: {}",
    "Say this: {}",
    "Repeat this: {}",
    "Echo: {}",
    "Reply with: {}",
    "Reply with exactly: {}",
    "Answer with: {}",
    "Say exactly: {}",
)

COUNT = (
    "Count from {} to {}.",
    "Please count from {} to {}.",
    "Count from {} to {}",
    "Can you count from {} to {}?",
)

COUNT_FROM_ONE = ("Count to {1}.", "Please count to {1}.", "Count up to {1}.", "Can you count to {1}?")

OPERATORS = ("-", "*", "/", "times", "minus", "x", "divided by")
