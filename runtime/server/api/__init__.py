"""What clients send, what it asks for, and what they get, in the order in which a request passes:

``bodies`` and ``validation_errors``: the fields there are, and what is wrong with one;
``terms``, ``conversation``, ``response_input`` and ``generation``: what is to be generated;
``completions``, ``responses``, ``function_calls`` and ``details``: the answer, whole and streamed;
``answer_schemas`` and ``openapi``: all of this, described for programs.
"""
