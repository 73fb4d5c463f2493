"""The notation of the course: every macro is well formed, new to TeX, listed in its table, and there in the output."""

import re
from pathlib import Path

import nbformat
import papermill
import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "Latex_macros.ipynb"
DEFINITION = re.compile(r"\\newcommand\{\\([A-Za-z]+)\}(?:\[([1-9])\])?\{(.*)\}")

# Names that TeX, LaTeX, amsmath and MathJax have taken, as four lists: mathematics (what MathJax's `base` and `ams`
# define, with the LaTeX names of the same commands), the primitives of TeX, the commands of plain TeX and LaTeX, and
# packages that the site may load.
TAKEN = frozenset(
    """
    above abovewithdelims acute aleph alpha amalg And angle approx approxeq arccos arcsin arctan arg array ast asymp
    atop atopwithdelims backepsilon backprime backsim backsimeq backslash bar barwedge Bbb Bbbk because begin beta beth
    between bf Big big bigcap bigcirc bigcup Bigg bigg Biggl biggl Biggm biggm Biggr biggr Bigl bigl Bigm bigm bigodot
    bigoplus bigotimes Bigr bigr bigsqcup bigstar bigtriangledown bigtriangleup biguplus bigvee bigwedge binom
    blacklozenge blacksquare blacktriangle blacktriangledown blacktriangleleft blacktriangleright bmod bot bowtie Box
    boxdot boxed boxminus boxplus boxtimes brace brack breve buildrel bullet Bumpeq bumpeq cal Cap cap cases cdot cdotp
    cdots centerdot cfrac check checkmark chi choose circ circeq circlearrowleft circlearrowright circledast circledcirc
    circleddash circledR circledS clubsuit colon complement cong coprod cos cosh cot coth cr csc Cup cup curlyeqprec
    curlyeqsucc curlyvee curlywedge curvearrowleft curvearrowright dagger daleth dashleftarrow dashrightarrow dashv
    dbinom ddagger ddddot dddot ddot ddots DeclareMathOperator def deg Delta delta det dfrac diagdown diagup Diamond
    diamond diamondsuit digamma dim displaylines displaystyle div divideontimes dot Doteq doteq doteqdot dotplus dots
    dotsb dotsc dotsi dotsm dotso doublebarwedge doublecap doublecup downdownarrows downharpoonleft downharpoonright ell
    emptyset end enspace epsilon eqalign eqalignno eqcirc eqref eqsim eqslantgtr eqslantless equiv eta eth exists exp
    fallingdotseq fbox Finv flat forall frac frak framebox frown Game Gamma gamma gcd ge genfrac geq geqq geqslant gets
    gg ggg gggtr gimel gnapprox gneq gneqq gnsim grave gt gtrapprox gtrdot gtreqless gtreqqless gtrless gtrsim gvertneqq
    hat hbar hbox hdashline heartsuit hfil hfill hfilll hline hom hookleftarrow hookrightarrow hphantom hskip hslash
    hspace Huge huge idotsint iff iiiint iiint iint Im imath impliedby implies in inf infty injlim int intercal intop
    iota it jmath Join kappa ker kern label Lambda lambda land LARGE Large large LaTeX ldotp ldots le leadsto left
    Leftarrow leftarrow leftarrowtail leftharpoondown leftharpoonup leftleftarrows Leftrightarrow leftrightarrow
    leftrightarrows leftrightharpoons leftrightsquigarrow leftroot leftthreetimes leq leqalignno leqq leqslant
    lessapprox lessdot lesseqgtr lesseqqgtr lessgtr lesssim let lg lhd lim liminf limits limsup ll llap Lleftarrow lll
    llless ln lnapprox lneq lneqq lnot lnsim log Longleftarrow longleftarrow Longleftrightarrow longleftrightarrow
    longmapsto Longrightarrow longrightarrow looparrowleft looparrowright lor lower lozenge Lsh lt ltimes lvertneqq
    maltese mapsto mathbb mathbf mathbin mathcal mathchoice mathclose mathfrak mathinner mathit mathnormal mathop
    mathopen mathord mathpunct mathrel mathring mathrm mathscr mathsf mathsfit mathstrut mathtt mathup matrix max mbox
    measuredangle mho mid middle min mkern mod models mp mskip mspace mu multimap nabla natural ncong ne nearrow neg
    negmedspace negthickspace negthinspace neq newcommand newenvironment newline nexists ngeq ngeqq ngeqslant ngtr ni
    nLeftarrow nleftarrow nLeftrightarrow nleftrightarrow nleq nleqq nleqslant nless nmid nobreakspace nolimits
    nonscript nonumber normalsize not notag notin nparallel nprec npreceq nRightarrow nrightarrow nshortmid
    nshortparallel nsim nsubseteq nsubseteqq nsucc nsucceq nsupseteq nsupseteqq ntriangleleft ntrianglelefteq
    ntriangleright ntrianglerighteq nu nVDash nVdash nvDash nvdash nwarrow odot oint oldstyle Omega omega omicron ominus
    operatorname oplus oslash otimes over overbrace overleftarrow overleftrightarrow overline overparen overrightarrow
    overset overunderset overwithdelims owns parallel partial perp phantom Phi phi Pi pi pitchfork pm pmatrix pmb pmod
    pod Pr prec precapprox preccurlyeq preceq precnapprox precneqq precnsim precsim prime prod projlim propto Psi psi
    qquad quad raise Re ref renewcommand renewenvironment restriction rhd rho right Rightarrow rightarrow rightarrowtail
    rightharpoondown rightharpoonup rightleftarrows rightleftharpoons rightrightarrows rightsquigarrow rightthreetimes
    risingdotseq rlap rm root Rrightarrow Rsh rtimes Rule rule scriptscriptstyle scriptsize scriptstyle searrow sec
    setminus sf sharp shortmid shortparallel shoveleft shoveright sideset Sigma sigma sim simeq sin sinh skew small
    smallfrown smallint smallsetminus smallsmile smash smile Space space spadesuit sphericalangle sqcap sqcup sqrt
    sqsubset sqsubseteq sqsupset sqsupseteq square stackbin stackrel star strut Subset subset subseteq subseteqq
    subsetneq subsetneqq substack succ succapprox succcurlyeq succeq succnapprox succneqq succnsim succsim sum sup
    Supset supset supseteq supseteqq supsetneq supsetneqq surd swarrow tag tan tanh tau tbinom TeX text textbf textit
    textnormal textrm textsf textstyle texttt textup tfrac therefore Theta theta thickapprox thicksim thinspace tilde
    times tiny to top triangle triangledown triangleleft trianglelefteq triangleq triangleright trianglerighteq tt
    twoheadleftarrow twoheadrightarrow underbrace underleftarrow underleftrightarrow underline underparen
    underrightarrow underset unlhd unrhd upharpoonleft upharpoonright uplus uproot Upsilon upsilon upuparrows varDelta
    varepsilon varGamma varinjlim varkappa varLambda varliminf varlimsup varnothing varOmega varPhi varphi varPi varpi
    varprojlim varpropto varPsi varrho varSigma varsigma varsubsetneq varsubsetneqq varsupsetneq varsupsetneqq varTheta
    vartheta vartriangle vartriangleleft vartriangleright varUpsilon varXi vcenter Vdash vDash vdash vdots vec vee
    veebar vphantom Vvdash wedge widehat widetilde wp wr Xi xi xleftarrow xrightarrow yen zeta

    abovedisplayshortskip abovedisplayskip accent adjdemerits advance afterassignment aftergroup badness baselineskip
    batchmode begingroup belowdisplayshortskip belowdisplayskip binoppenalty botmark box boxmaxdepth brokenpenalty
    catcode char chardef cleaders closein closeout clubpenalty copy count countdef crcr csname day deadcycles
    defaulthyphenchar defaultskewchar delcode delimiter delimiterfactor delimitershortfall dimen dimendef discretionary
    displayindent displaylimits displaywidowpenalty displaywidth divide doublehyphendemerits dp dump edef else
    emergencystretch endcsname endgroup endinput endlinechar eqno errhelp errmessage errorcontextlines errorstopmode
    escapechar everycr everydisplay everyhbox everyjob everymath everypar everyvbox exhyphenpenalty expandafter fam fi
    finalhyphendemerits firstmark floatingpenalty font fontdimen fontname futurelet gdef global globaldefs halign
    hangafter hangindent hbadness hfilneg hfuzz hoffset holdinginserts hrule hsize hss ht hyphenation hyphenchar
    hyphenpenalty if ifcase ifcat ifdim ifeof iffalse ifhbox ifhmode ifinner ifmmode ifnum ifodd iftrue ifvbox ifvmode
    ifvoid ifx ignorespaces immediate indent input inputlineno insert insertpenalties interlinepenalty jobname language
    lastbox lastkern lastpenalty lastskip lccode leaders lefthyphenmin leftskip leqno linepenalty lineskip lineskiplimit
    long looseness lowercase mag mark mathaccent mathchar mathchardef mathcode mathsurround maxdeadcycles maxdepth
    meaning medmuskip message month moveleft moveright multiply muskip muskipdef newlinechar noalign noboundary noexpand
    noindent nonstopmode nulldelimiterspace nullfont number omit openin openout or outer output outputpenalty
    overfullrule pagedepth pagegoal pagetotal par parfillskip parindent parshape parskip patterns pausing penalty
    postdisplaypenalty predisplaypenalty predisplaysize pretolerance prevdepth prevgraf radical read relax relpenalty
    righthyphenmin rightskip romannumeral scriptfont scriptscriptfont scriptspace scrollmode setbox setlanguage sfcode
    shipout show showbox showboxbreadth showboxdepth showlists showthe skewchar skip skipdef spacefactor spaceskip span
    special splitbotmark splitfirstmark splitmaxdepth splittopskip string tabskip textfont the thickmuskip thinmuskip
    time toks toksdef tolerance topmark topskip tracingall tracingcommands uccode uchyph unhbox unhcopy unkern unpenalty
    unskip unvbox unvcopy uppercase vadjust valign vbadness vbox vfil vfill vfilneg vfuzz voffset vrule vsize vskip
    vsplit vss vtop wd widowpenalty write xdef xleaders xspaceskip year

    a AA aa addcontentsline address addtocounter addtolength AE ae allowbreak allowdisplaybreaks Alph alph appendix
    arabic author b bfseries bgroup bibitem bibliography bibliographystyle bigskip body boldmath break c caption cc
    centering centerline chapter cite cleardoublepage clearpage cline closing columnsep columnwidth copyright d date
    DeclareRobustCommand DH dh DJ dj documentclass dotfill egroup eject em emph empty endgraf endline ensuremath
    evensidemargin fboxrule fboxsep filbreak fill flushbottom fnsymbol fontencoding fontfamily fontseries fontshape
    fontsize footnote footnotemark footnotesize footnotetext frame frenchspacing fussy goodbreak graphicspath H hang
    hrulefill i ifthenelse include includegraphics includeonly index intertext item itemindent itemsep itshape j k kill
    L l labelsep leavevmode leftline line linebreak linespread linethickness linewidth listoffigures listoftables loop
    lq makeatletter makeatother makebox makeindex maketitle marginpar markboth markright mathversion mdseries medbreak
    medskip multicolumn multiput name narrower newbox newcount newcounter newdimen newfont newif newlength newpage
    newsavebox newskip newtheorem newtoks next NG ng nobreak nocite nofiles nolinebreak nopagebreak normalbaselines
    normalfont null numberwithin O o obeylines obeyspaces oddsidemargin OE oe onecolumn opening operatornamewithlimits
    oval P pagebreak pagenumbering pageref pagestyle paragraph parbox parsep part pounds protect providecommand ps put r
    raggedbottom raggedleft raggedright raisebox refstepcounter repeat rightline rmfamily Roman roman rq S samepage
    savebox sbox sc scshape section selectfont setcounter setlength settodepth settoheight settowidth sffamily
    shortintertext shortstack signature sl sloppy slshape smallbreak smallskip SS ss stepcounter stop subparagraph
    subsection subsubsection suppressfloats symbol t tabbingsep tabcolsep tableofcontents tabularnewline telephone
    textasciitilde textbackslash textheight textmd textsc textsl textsubscript textsuperscript textwidth TH th thanks
    thicklines thinlines thispagestyle title today topglue topmargin ttfamily twocolumn typein typeout u unboldmath
    underbar upshape usebox usecounter usefont usepackage v value vector verb vglue vline vspace width

    abs autoref bbox bcancel bm boldsymbol Bra bra braket cancel cancelto ce class color colorbox cssId definecolor
    enclose fcolorbox href hyperlink hypertarget Ket ket mathtip nolinkurl norm pu ratio reflectbox require resizebox
    rotatebox scalebox Set style texorpdfstring textcolor texttip toggle unicode url xcancel
    """.split()
)


def balanced(tex: str) -> bool:
    """Whether every brace of `tex` is closed, and none before it is opened; \\{ and \\} are signs, not braces."""
    depth = 0
    for brace in re.findall(r"[{}]", re.sub(r"\\.", "", tex)):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def problems(source: str) -> list[str]:
    """What is wrong with a cell of macros: one sentence for each fault, none for a good cell."""
    lines = source.splitlines()
    if lines[:2] != ["%%latex", "$$"] or lines[-1] != "$$":
        return ["the cell is not %%latex with one formula between lines of $$"]
    found, known = [], set()
    for line in lines[2:-1]:
        match = DEFINITION.fullmatch(line)
        if not match or not balanced(match[3]):
            found.append(f"not one \\newcommand{{\\name}}{{...}}: {line}")
            continue
        name, arguments, body = match[1], int(match[2] or 0), match[3]
        if name in TAKEN:
            found.append(f"\\{name} has a meaning in TeX")
        if name in known:
            found.append(f"\\{name} is defined twice")
        if {int(n) for n in re.findall(r"#(\d)", body)} != set(range(1, arguments + 1)):
            found.append(f"\\{name} does not use its arguments")
        found += [
            f"\\{name} uses the unknown \\{word}"
            for word in re.findall(r"\\([A-Za-z]+)", body)
            if word not in TAKEN | known
        ]
        known.add(name)
    return found


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


@pytest.fixture(scope="module")
def macro_cell(notebook) -> nbformat.NotebookNode:
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return cell


def test_the_macros_have_no_problems(macro_cell):
    assert problems(macro_cell.source) == []


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (r"\newcommand{\tt}{t}", "has a meaning in TeX"),
        (r"\newcommand{\ll}{l}", "has a meaning in TeX"),
        (r"\newcommand{\dim}{n}", "has a meaning in TeX"),
        (r"\newcommand{\P}{P}", "has a meaning in TeX"),
        (r"\newcommand{\policy}{\pi}", "is defined twice"),
        (r"\newcommand{Thetam}{\Theta}", "not one"),
        (r"\newcommand{\open}{\mathcal{S}", "not one"),
        (r"\newcommand{\swapped}{}x{}", "not one"),
        (r"\newcommand{\two}{a} \newcommand{\three}{b}", "not one"),
        (r"\renewcommand{\new}{x}", "not one"),
        (r"\newcommand{\given}[2]{(#1)}", "does not use its arguments"),
        (r"\newcommand{\typo}{\mathcall{S}}", r"uses the unknown \mathcall"),
        ("", "not one"),
    ],
)
def test_a_bad_macro_is_found(line, complaint):
    (problem,) = problems("\n".join(["%%latex", "$$", r"\newcommand{\policy}{\pi_\theta}", line, "$$"]))
    assert complaint in problem


def test_a_good_macro_passes():
    lines = [r"\newcommand{\half}{\frac{1}{2}}", r"\newcommand{\larger}[1]{\{#1 > \half\}}"]
    assert problems("\n".join(["%%latex", "$$", *lines, "$$"])) == []


def test_a_cell_without_its_formula_is_found():
    assert problems("%%latex\n\\newcommand{\\policy}{\\pi}") != []


def test_the_tables_say_what_the_cell_defines(notebook, macro_cell):
    defined = {match[1]: match[3] for match in map(DEFINITION.fullmatch, macro_cell.source.splitlines()) if match}
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    rows = re.findall(r"^\| `\\(\w+)` \| \$(.+?)\$ \| .+ \|$", text, re.M)
    assert dict(rows) == defined
    assert len(rows) == len(defined)


def test_the_committed_output_is_that_of_the_source(macro_cell):
    (output,) = macro_cell.outputs
    assert "%%latex\n" + output.data["text/latex"].rstrip("\n") == macro_cell.source


def test_the_file_carries_nothing_of_the_run(notebook):
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert all(not cell.metadata for cell in notebook.cells)


def test_a_notebook_takes_the_macros_over_with_run(tmp_path, macro_cell):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / NOTEBOOK.name).write_bytes(NOTEBOOK.read_bytes())
    cell = nbformat.v4.new_code_cell(f"%run ../{NOTEBOOK.name}")
    reader = tmp_path / "notebooks" / "reader.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), reader)
    executed = papermill.execute_notebook(
        reader, None, cwd=reader.parent, kernel_name="python3", language="python", progress_bar=False
    )
    assert executed.cells[-1].outputs == macro_cell.outputs
