# SPDX-License-Identifier: MIT
# bash: completion of pasidctl.

# What the running pasidd has, the first column of a table; nothing where it cannot be asked.
_pasidctl_column() {
	pasidctl "$@" 2>/dev/null | awk 'NR > 1 { print $1 }'
}

_pasidctl() {
	local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
	local verb='' place=0 i words='' bus=()
	for ((i = 1; i < COMP_CWORD; i++)); do
		case ${COMP_WORDS[i]} in
		--bus)
			bus=(--bus "${COMP_WORDS[i + 1]}")
			((i++))
			;;
		--socket | --seed | --driver | --output | -o) ((i++)) ;;
		-*) ;;
		*)
			if [[ -z $verb ]]; then verb=${COMP_WORDS[i]}; else ((++place)); fi
			;;
		esac
	done
	case $previous in
	--bus)
		mapfile -t COMPREPLY < <(compgen -W 'system session' -- "$current")
		return
		;;
	--socket | --driver | --output | -o)
		mapfile -t COMPREPLY < <(compgen -f -- "$current")
		return
		;;
	--seed) return ;;
	esac
	if [[ $current == -* ]]; then
		case $verb in
		devices | contexts | stats | maps | walk | top) words='--json --bus' ;;
		trace) words='--json --bus --output' ;;
		doctor) words='--json' ;;
		bind) words='--dry-run --persist --json' ;;
		unbind) words='--dry-run --json' ;;
		selftest) words='--socket --seed --driver --json' ;;
		'') words='--version' ;;
		esac
		words+=' --help'
	else
		case $verb:$place in
		:0) words='devices contexts stats maps walk top trace doctor bind unbind driver selftest' ;;
		maps:0 | walk:0) words=$(_pasidctl_column contexts "${bus[@]}") ;;
		selftest:0) words=$(_pasidctl_column devices) ;;
		doctor:0 | bind:* | unbind:*) words=$(cd /sys/bus/pci/devices 2>/dev/null && echo *) ;;
		driver:0) words='new' ;;
		esac
	fi
	mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
	# A PCI address is a word for readline, too.
	if declare -F __ltrim_colon_completions >/dev/null; then
		__ltrim_colon_completions "$current"
	fi
}

complete -F _pasidctl pasidctl
