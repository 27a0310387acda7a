"""A copy of pyinit1.py that traces itself: it says which of its lines are executed, or raises an exception at one of them, once.

Only the tests' copies have this in them; their lines have pyinit1.py's numbers. A plan is a list of words: `record`, or ROLE LINE
EXCEPTION. A role is who executes the line: `init`, that is our PID 1 (or the plain process), `again`, the same after a re-exec,
`child`, a child of its before exec, or `trial`, a trial start. What is done goes to a file: "executed ROLE LINE", "raised ROLE LINE".
"""

import ast
import functools

LAST = 'if __name__ == "__main__":\n    # As long as'       # pyinit1.py's last statement begins so
EXCEPTIONS = ("ZeroDivisionError", "MemoryError", "RecursionError", "SystemExit", "KeyboardInterrupt")

# For a plain process, too.
IN_TRIALS_NAMESPACE = 'os.readlink("/proc/self/ns/pid") != os.readlink("/proc/1/ns/pid")'

# `plan` is an expression, for a list of words; while that is empty it is asked again, at each call. `when` is one for what stands before
# the role: it may look at `called`, the names of the functions that this process has called. `to` is the file that is written to,
# `raised` the one that is there after the exception.
HOOK = """
def trace_for_a_test():
    role_at_start = "trial" if %(trial)s else "again" if sys.argv[1:2] == ["--adopt-server"] else "init"
    pid_at_start, this_file = os.getpid(), sys._getframe().f_code.co_filename
    plan = %(plan)s
    recorded, called = set(), set()

    def role():
        return %(when)s + (role_at_start if role_at_start == "trial" or os.getpid() == pid_at_start else "child")

    def say(what, line):
        fd = os.open("%(to)s", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY)
        os.write(fd, b"%%s %%s %%d\\n" %% (what.encode(), role().encode(), line))
        os.close(fd)

    def record(line):
        if (role(), line) not in recorded:
            recorded.add((role(), line))
            say("executed", line)

    def raise_once(line):
        try:
            os.close(os.open("%(raised)s", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        say("raised", line)
        import builtins
        raise getattr(builtins, plan[2])("on purpose")

    def trace(frame, event, _):
        if frame.f_code.co_filename != this_file:
            return None
        if event == "call":
            called.add(frame.f_code.co_name)
            plan[:] = plan or %(plan)s
        elif event == "line" and plan == ["record"]:
            record(frame.f_lineno)
        elif event == "line" and plan and frame.f_lineno == int(plan[1]) and role() == plan[0]:
            raise_once(frame.f_lineno)
        return trace

    if not os.path.exists("%(raised)s"):
        sys.settrace(trace)


if __name__ == "__main__":
    trace_for_a_test()

"""


def hook(plan, to, raised, when='""'):
    """The statements that trace; they belong before the last one."""
    return HOOK % {"trial": IN_TRIALS_NAMESPACE, "plan": plan, "to": to, "raised": raised, "when": when}


def with_statements(text, statements):
    """pyinit1.py's text with these before its last statement: all is defined there, and nothing has begun."""
    assert text.count(LAST) == 1
    return text.replace(LAST, statements + LAST)


@functools.cache
def functions_of(text):
    """{line: the name of the innermost function that it is in}; what is in none is the module's."""
    names = {}

    def visit(node, name):
        for child in ast.iter_child_nodes(node):
            inner = name
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                inner = name + "." * bool(name) + child.name
                for line in range(child.lineno, child.end_lineno + 1) if isinstance(child, ast.FunctionDef) else ():
                    names[line] = inner
            visit(child, inner)

    visit(ast.parse(text), "")
    return names
