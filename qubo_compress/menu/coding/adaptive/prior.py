"""Probabilities that a new stream starts with, so that small tensors cost little.

They were counted on codes of the three networks of ``TRAINED_ON`` at fifteen steps each; studies of the coder measure
others. Every stream depends on them: they must not change.
"""

from __future__ import annotations

import base64
import zlib

import numpy as np
import numpy.typing as npt

from qubo_compress.menu.coding.adaptive.tables import SQUASH

QUANTIZERS, LEVELS, DECISIONS = 3, 48, 20
"""Plain codes and the two quantizers of a trellis, expected sizes, decisions."""

TRAINED_ON = ("digits", "fashion-mnist", "fashion-mnist-resnet56")
"""Names of benchmark networks."""

LOGIT_STEP = 16
"""Logits are whole numbers of 1/16; tables have 1/256."""

_STORED = (
    "c-oCt%WhOL4868vC%1pVo}cDZ5MqG@VuL^wBqSDeL8*jPR#5twnH%i1OkQ3zn#~;fbseAMoId+}e)0S4%lnTnzy5qU1j}@YXAB)X+-3~OvGcIS"
    "v%8$JaOYs;V9~+m4<T{#@-lrL%AA-a9OhmTZL=NBz6`LNFdBPE9Ec!ySP%t=CK4+a@TRjf46&<`3=9|sU)IdBAL401**af4++!LrXhCf?YQrKD"
    "_^zu(?E=N_e$`ulsf%Y|kkmAXN@9r-+8h?K)ZP1*khL1Xhr`tw9zcrK4zYmx#nNB}vX%{)qEg#c{$nXS)LQ<7=@^i}AjNoXda5_9*Tk|Oi_z9a"
    "orM_FdaMxTBn4hmTGO$Z=g;1Kzr4Qq@cR7pc!EQu<nVHJ_?yCv$*sc=#}4<8)ClzWwmG^nCk7NpBW67SVJC;95ey#p+0no2nZJ}B?q^3Mrq(F7"
    "9A=D`o7oqKh&C&PcSFs_^KI0P5FpdYa~sPZ)5O>-kx|;{&|`&K(BFs6ICn~f_hjujU3jj1#cmEPAom!dNra3VVcxTDa7?M4$)X6-UTOKSgl>DN"
    "Mp4Cy+npvRVfJxw)o5%G49FqZfGV3Nvf6~Fl{1`KRBr;*fH4#7cL`;y0V(~7dq@ma1HO6j>c`cuZ*M=H)#I$F#l^C-r#-$MmdEW&IGM4Gj@^xe"
    "Wrx2Wc6gkfqc6bjo~HTRaOd#y*6G0{Iy(3H?~K8I#wbsFTCtI<dIq``-|>ZD3kC=N2AfIjUr)xD5woFJ3`SpDJ-zOhg#-g;9PH%$e&I=<*C1;|"
    "?`u?$W!&8g@|1%(4e``2wr?*g4+#|`>EAC3#kN2y4}rB)_y}zKk|<YaZA!8w9rhK|4I3-~-qwJT=nzGfthwYUDQ|is0h@rTBl}%Md{P7c120F4"
    "<N"
)
"""Differences of the logits from one level to the next, compressed."""


def _read() -> npt.NDArray[np.int32]:
    stored = np.frombuffer(zlib.decompress(base64.b85decode(_STORED)), dtype=np.int8).astype(np.int64)
    logits = np.cumsum(stored.reshape(QUANTIZERS, LEVELS, DECISIONS), 1)
    return SQUASH[np.clip(logits * LOGIT_STEP, -2047, 2047) + 2048]


PRIOR = _read()
"""(3, 48, 20) probability, in 1/65536, that a decision is passed."""
